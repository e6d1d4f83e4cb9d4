-- What ensembles are worth: the loss of K members, and its limit as K grows. Losses are those of `ensemble_loss`.

-- One row an (ensemble, averaging, K). Over subsets the curve is smooth: each of them is another draw of K members.
CREATE OR REPLACE VIEW ensemble_size AS
SELECT ensemble_id, averaging, len(subset) AS members, if(count(val_loss) = count(*), avg(val_loss), NULL) AS val_loss,
    min(val_loss) AS least, max(val_loss) AS greatest, count(*) AS subsets
FROM ensemble_loss
GROUP BY ensemble_id, averaging, len(subset);

-- What a search for the limit minimises: the limit, or the loss of all members where the law has none; NULL where that
-- loss is not finite. Give it a column: a macro repeats its argument.
CREATE OR REPLACE MACRO ensemble_objective(fit, val_loss) AS
    CASE WHEN val_loss IS NOT NULL THEN coalesce(if(fit.reason IS NULL, fit.e, NULL), val_loss) END;

-- One row a (cell, ensemble, averaging): the law L = A / K^alpha + E. Its standard error is that of the jackknife
-- (Efron 1982, chapter 3): the same fit without each member, sqrt((M - 1) / M sum (E_i - mean)^2).
CREATE OR REPLACE VIEW ensemble_asymptote AS
WITH left_out AS (
    SELECT ensemble_id, len(members) AS size, unnest(if(size < 4, [], range(size)) || [-1]) AS place FROM ensemble
), fitted AS (
    SELECT ensemble_id, averaging, place, power_law(list(k), list(val_loss)) AS fit, arg_max_null(val_loss, k) AS val_loss
    FROM (
        SELECT ensemble_id, averaging, place, len(subset) AS k, if(count(val_loss) = count(*), avg(val_loss), NULL) AS val_loss
        FROM ensemble_loss JOIN left_out USING (ensemble_id)
        WHERE NOT list_contains(subset, place)
        GROUP BY ensemble_id, averaging, place, len(subset)
    )
    GROUP BY ensemble_id, averaging, place
), jackknife AS (
    SELECT ensemble_id, averaging, any_value(val_loss) FILTER (place = -1) AS val_loss, any_value(fit) FILTER (place = -1) AS fit,
        count(*) - 1 AS fits, min(fit.reason) FILTER (place >= 0) AS failed,
        sqrt((count(*) - 2) * var_pop(fit.e) FILTER (place >= 0)) AS error
    FROM fitted
    GROUP BY ensemble_id, averaging
), judged AS (
    SELECT cell_id, ensemble_id, coordinates, averaging, len(members) AS members, val_loss, fit, error,
        if(val_loss IS NULL, 'the loss of its members is not finite', fit.reason) AS reason, CASE
            WHEN fit.reason IS NOT NULL OR val_loss IS NULL THEN 'there is no limit to bracket'
            WHEN len(members) < 4 THEN 'leaving a member out needs 4 members; there are ' || len(members)
            WHEN fits < len(members) THEN 'no subsets without the first member were evaluated'
            WHEN failed IS NOT NULL THEN 'without one of the members: ' || failed END AS interval_reason
    FROM cell_ensemble JOIN ensemble USING (ensemble_id) JOIN jackknife USING (ensemble_id)
)
SELECT cell_id, ensemble_id, coordinates, averaging, members, val_loss, if(reason IS NULL, fit.e, NULL) AS limit_loss,
    fit.a, fit.alpha, fit.e, fit.rmse, if(interval_reason IS NULL, error, NULL) AS standard_error,
    fit.e - 1.645 * standard_error AS e_low, fit.e + 1.645 * standard_error AS e_high,
    ensemble_objective(fit, val_loss) AS objective_loss, interval_reason, reason
FROM judged;
