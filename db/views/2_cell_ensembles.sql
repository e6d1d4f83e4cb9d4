-- Ensembles: the loss of K members, and its limit as K grows. Losses are those of `ensemble_loss`.

-- One row an (ensemble, averaging, K). Over subsets the curve is smooth: each of them is another draw of K members.
CREATE OR REPLACE VIEW ensemble_size AS
SELECT ensemble_id, averaging, len(subset) AS members, if(count(val_loss) = count(*), avg(val_loss), NULL) AS mean_loss,
    min(val_loss) AS least, max(val_loss) AS greatest, count(*) AS subsets
FROM ensemble_loss
GROUP BY ensemble_id, averaging, len(subset);

-- What a search for the limit minimises: the limit, or the loss of all members where the law has none; NULL where that
-- loss is not finite. Give it a column: a macro repeats its argument.
CREATE OR REPLACE MACRO ensemble_objective(fit, val_loss) AS
    CASE WHEN val_loss IS NOT NULL THEN coalesce(if(fit.reason IS NULL, fit.e, NULL), val_loss) END;

-- The law L = A / K^alpha + E of one ensemble of `size` members, from its list of {subset, val_loss} -> STRUCT. The standard
-- errors of E and of the loss of all M members are those of the jackknife (Efron 1982, chapter 3): the same over the subsets
-- without each member in turn, sqrt((M - 1) / M sum (E_i - mean)^2).
CREATE OR REPLACE MACRO ensemble_law(losses, size) AS (
    WITH loss AS (
        SELECT unnest(losses_, max_depth := 2), m, place
        FROM (SELECT losses AS losses_, m, unnest(range(-1, if(m < 3, 0, m))) AS place FROM (SELECT size AS m))
    ), fitted AS (
        SELECT place, m, power_law(list(k), list(val_loss)) AS fit, arg_max_null(val_loss, k) AS val_loss, max(k) AS largest
        FROM (
            SELECT place, m, len(subset) AS k, if(count(val_loss) = count(*), avg(val_loss), NULL) AS val_loss
            FROM loss WHERE NOT list_contains(subset, place)
            GROUP BY place, m, len(subset)
        )
        GROUP BY place, m
    ), jackknife AS (
        SELECT m, any_value(fit) FILTER (place = -1) AS fit, any_value(val_loss) FILTER (place = -1) AS val_loss,
            count(*) - 1 AS fits, min(fit.reason) FILTER (place >= 0) AS failed,
            sqrt((count(*) - 2) * var_pop(fit.e) FILTER (place >= 0)) AS error,
            if(count(val_loss) FILTER (place >= 0 AND largest = m - 1) = m,
                sqrt((m - 1) * var_pop(val_loss) FILTER (place >= 0)), NULL) AS loss_error
        FROM fitted GROUP BY m
    ), judged AS (
        SELECT *, if(val_loss IS NULL, 'the loss of its members is not finite', fit.reason) AS reason, CASE
            WHEN val_loss IS NULL OR fit.reason IS NOT NULL THEN 'no limit, so no interval'
            WHEN m < 4 THEN 'leaving a member out needs 4 members; there are ' || m
            WHEN fits < m THEN 'no subsets without the first member were evaluated'
            WHEN failed IS NOT NULL THEN 'without one of the members: ' || failed END AS interval_reason
        FROM jackknife
    )
    SELECT {members: m, val_loss: val_loss, limit_loss: if(reason IS NULL, fit.e, NULL),
        a: fit.a, alpha: fit.alpha, e: fit.e, rmse: fit.rmse, standard_error: if(interval_reason IS NULL, error, NULL),
        val_loss_error: if(val_loss IS NULL, NULL, loss_error),
        objective_loss: ensemble_objective(fit, val_loss), interval_reason: interval_reason, reason: reason}
    FROM judged
);

-- One row a (cell, ensemble, averaging): its law.
CREATE OR REPLACE VIEW ensemble_asymptote AS
WITH evaluated AS (
    SELECT cell_id, ensemble_id, coordinates, averaging, any_value(len(members)) AS size,
        list({subset: subset, val_loss: val_loss}) AS losses
    FROM cell_ensemble JOIN ensemble USING (ensemble_id) JOIN ensemble_loss USING (ensemble_id)
    GROUP BY cell_id, ensemble_id, coordinates, averaging
)
SELECT * EXCLUDE (size, losses, law), law.*, law.limit_loss - 1.645 * law.standard_error AS e_low,
    law.limit_loss + 1.645 * law.standard_error AS e_high
FROM (SELECT *, ensemble_law(losses, size) AS law FROM evaluated);
