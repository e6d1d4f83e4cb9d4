-- The law L = A / x^alpha + E, fitted in SQL, for ad-hoc queries: least squares with A >= 0, E >= 0, 0.02 <= alpha <= 3.
-- For a fixed alpha the law is linear in u = x^-alpha, so A and E are a regression's slope and intercept (variable
-- projection: Golub and Pereyra 1973); what is left is a search over one number. Each stage tries 65 exponents,
-- evenly spaced in log alpha, around the best of the stage before; the last are 3e-6 apart, relative to alpha.

-- Best exponent among start / ratio ... start * ratio, kept inside the bounds; NULL where nothing can be fitted.
CREATE OR REPLACE MACRO power_law_stage(xs, ys, start, ratio) AS (
    WITH point AS (
        SELECT unnest(xs) AS x, unnest(ys) AS y
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
            WHEN fit.alpha >= 3 * 0.99999 THEN 'the exponent is at its upper bound 3: loss falls too abruptly for a power law'
            WHEN fit.e <= 0 THEN 'the limit is at its bound 0: the points show no limit' END}
    FROM (SELECT *, if(distinct_x < 3, NULL, power_law_stage(xs_, ys_, stage_3.alpha, 1.0001)) AS fit
    FROM (SELECT *, power_law_stage(xs_, ys_, stage_2.alpha, 1.003) AS stage_3
    FROM (SELECT *, power_law_stage(xs_, ys_, stage_1.alpha, 1.09) AS stage_2
    FROM (SELECT *, power_law_stage(xs_, ys_, 0.2449489742783178, 12.24744871391589) AS stage_1
    FROM (SELECT list(x) AS xs_, list(y) AS ys_, count(*) AS points, count(DISTINCT x) AS distinct_x
        FROM (SELECT unnest(xs)::DOUBLE AS x, unnest(ys)::DOUBLE AS y)
        WHERE x > 0 AND isfinite(x) AND isfinite(y))))))
);

-- x where L = A / x^alpha + E falls to `loss`; NULL where it never does.
CREATE OR REPLACE MACRO power_law_inverse(a, alpha, e, loss) AS
    CASE WHEN loss > e THEN power(a / (loss - e), 1 / alpha) END;
