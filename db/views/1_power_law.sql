-- The law L = A / x^alpha + E, fitted in SQL: least squares with A >= 0, E >= 0, 0.02 <= alpha <= 3.
-- For a fixed alpha the law is linear in u = x^-alpha, so A and E are a regression's slope and intercept (variable
-- projection: Golub and Pereyra 1973); what is left is a search over one number. Each stage tries 65 exponents,
-- evenly spaced in log alpha, around the best of the stage before; the last are 3e-6 apart, relative to alpha.

-- Best exponent among start / ratio ... start * ratio, kept inside the bounds; NULL where nothing can be fitted.
CREATE OR REPLACE MACRO power_law_stage(xs, ys, start, ratio) AS (
    WITH point AS (
        SELECT x, y FROM (SELECT unnest(xs)::DOUBLE AS x, unnest(ys)::DOUBLE AS y)
        WHERE x > 0 AND isfinite(x) AND isfinite(y)
    ), exponent AS (
        SELECT greatest(0.02, least(3.0, centre * power(ratio, (i - 32) / 32.0))) AS alpha
        FROM (SELECT start::DOUBLE AS centre), range(65) AS t(i)
    ), line AS (
        SELECT exponent.alpha, count(*) AS points, avg(y) AS mean, regr_syy(y, u) AS syy, regr_slope(y, u) AS slope,
            regr_intercept(y, u) AS intercept, regr_syy(y, u) - regr_sxy(y, u) * regr_slope(y, u) AS free_sse,
            sum(u * y) / sum(u * u) AS origin_slope, sum(y * y) - sum(u * y) ^ 2 / sum(u * u) AS origin_sse
        FROM exponent, point, LATERAL (SELECT power(x, -exponent.alpha) AS u)
        GROUP BY exponent.alpha
    ), bounded AS (
        SELECT CASE
            WHEN NOT slope > 0 THEN {alpha: alpha, a: 0.0, e: mean, sse: syy, points: points}
            WHEN intercept < 0 THEN {alpha: alpha, a: origin_slope, e: 0.0, sse: origin_sse, points: points}
            ELSE {alpha: alpha, a: slope, e: intercept, sse: free_sse, points: points} END AS fit
        FROM line WHERE isfinite(slope)
    )
    SELECT arg_min(fit, fit.sse) FROM bounded
);

-- Lists of x and y (NULLs are left out) -> STRUCT(alpha, a, e, sse, rmse, points, reason). A is in nats where x = 1.
-- `reason` says why e is no limit: too few points, points that do not fall, or a parameter at its bound.
CREATE OR REPLACE MACRO power_law(xs, ys) AS (
    SELECT {alpha: if(fit.a = 0, NULL, fit.alpha), a: fit.a, e: fit.e, sse: if(fit.sse < 0, 0, fit.sse),
        rmse: sqrt(if(fit.sse < 0, 0, fit.sse) / points), points: points, reason: CASE
            WHEN distinct_x < 3 THEN 'a law with three parameters needs 3 points; there '
                || if(distinct_x = 1, 'is 1', 'are ' || distinct_x)
            WHEN fit.a <= 0 THEN 'the points do not fall: the best fit has A = 0'
            WHEN fit.alpha <= 0.02 * 1.00001 THEN 'the exponent is at its lower bound 0.02: the points show no limit'
            WHEN fit.alpha >= 3 * 0.99999 THEN 'the exponent is at its upper bound 3: no power law falls so abruptly'
            WHEN fit.e <= 0 THEN 'the limit is at its bound 0: the points show no limit' END}
    FROM (SELECT *, if(distinct_x < 3, NULL, power_law_stage(xs_, ys_, stage_3.alpha, 1.0001)) AS fit
    FROM (SELECT *, power_law_stage(xs_, ys_, stage_2.alpha, 1.003) AS stage_3
    FROM (SELECT *, power_law_stage(xs_, ys_, stage_1.alpha, 1.09) AS stage_2
    FROM (SELECT *, power_law_stage(xs_, ys_, 0.2449489742783178, 12.24744871391589) AS stage_1
    FROM (SELECT list(x) AS xs_, list(y) AS ys_, count(*) AS points, count(DISTINCT x) AS distinct_x
        FROM (SELECT unnest(xs)::DOUBLE AS x, unnest(ys)::DOUBLE AS y)
        WHERE x > 0 AND isfinite(x) AND isfinite(y))))))
);

-- Least and greatest E, and the offsets they were found at, that exponents best * exp(away / ratio ... away * ratio) and
-- some A >= 0 reach with a sum of squares of at most `ceiling`. For one alpha the sum of squares is a parabola in E.
CREATE OR REPLACE MACRO power_law_reach(xs, ys, best, ceiling, away, ratio) AS (
    WITH point AS (
        SELECT x, y FROM (SELECT unnest(xs)::DOUBLE AS x, unnest(ys)::DOUBLE AS y)
        WHERE x > 0 AND isfinite(x) AND isfinite(y)
    ), exponent AS (
        SELECT away_ * power(ratio, i / 16.0) AS offset_, ceiling_,
            greatest(0.02, least(3.0, best_ * exp(away_ * power(ratio, i / 16.0)))) AS alpha
        FROM (SELECT best AS best_, ceiling AS ceiling_, away AS away_), range(-16, 17) AS t(i)
    ), line AS (
        SELECT offset_, ceiling_, count(*) AS n, avg(y) AS mean, regr_syy(y, u) AS syy, regr_intercept(y, u) AS centre,
            sum(u * y) / sum(u) AS highest, ceiling_ - (regr_syy(y, u) - regr_sxy(y, u) * regr_slope(y, u)) AS slack,
            count(*) * regr_sxx(y, u) / sum(u * u) AS curvature
        FROM exponent, point, LATERAL (SELECT power(x, -exponent.alpha) AS u)
        GROUP BY offset_, ceiling_
    ), piece AS (
        SELECT offset_, greatest(0, centre - sqrt(greatest(slack, 0) / curvature)) AS low,
            least(highest, centre + sqrt(greatest(slack, 0) / curvature)) AS high
        FROM line WHERE slack >= -1e-12 * (syy + ceiling_) AND isfinite(centre)
        UNION ALL
        SELECT offset_, greatest(0, mean - sqrt(greatest(ceiling_ - syy, 0) / n)),
            mean + sqrt(greatest(ceiling_ - syy, 0) / n)
        FROM line WHERE syy <= ceiling_
    )
    SELECT {low: min(low), low_at: arg_min(offset_, low), high: max(high), high_at: arg_max(offset_, high)}
    FROM piece WHERE low <= high
);

-- 90% profile-likelihood interval of E, given the standard deviation `sd` of one y: every E that the law reaches with a
-- sum of squares of at most sse + 2.706 sd^2 (2.706: the 90% point of chi-square with 1 degree of freedom). `fit` is
-- power_law(xs, ys). Exponents are searched outwards from the best one on both sides, then around the ends found, until
-- an end's offset is known to 0.2%. -> STRUCT(low, high), both NULL where fit or sd is.
CREATE OR REPLACE MACRO power_law_interval(xs, ys, fit, sd) AS (
    SELECT {low: least(side_low, power_law_reach(xs_, ys_, best_, ceiling_, low_2, 1.035).low),
        high: greatest(side_high, power_law_reach(xs_, ys_, best_, ceiling_, high_2, 1.035).high)}
    FROM (SELECT *, power_law_reach(xs_, ys_, best_, ceiling_, low_1, 1.65).low_at AS low_2,
        power_law_reach(xs_, ys_, best_, ceiling_, high_1, 1.65).high_at AS high_2
    FROM (SELECT *, least(up.low, down.low) AS side_low, greatest(up.high, down.high) AS side_high,
        if(down.low IS NULL OR up.low <= down.low, up.low_at, down.low_at) AS low_1,
        if(down.high IS NULL OR up.high >= down.high, up.high_at, down.high_at) AS high_1
    FROM (SELECT *, power_law_reach(xs_, ys_, best_, ceiling_, 0.0025, 2500.0) AS up,
        power_law_reach(xs_, ys_, best_, ceiling_, -0.0025, 2500.0) AS down
    FROM (SELECT xs AS xs_, ys AS ys_, coalesce(fit_.alpha, 0.245) AS best_, fit_.sse + 2.706 * sd_ ^ 2 AS ceiling_
        FROM (SELECT fit AS fit_, sd::DOUBLE AS sd_)))))
);
