-- Ensembles: the loss of K members, and its limit as K grows. Losses are those of `ensemble_loss`, fits those of `fit`.

-- One row an (ensemble, averaging, K). Over subsets the curve is smooth: each of them is another draw of K members. Where each
-- subset leaves one of K + 1 members out, next_error is the standard error of the loss of all K + 1, by the jackknife over members
-- (Efron 1982, chapter 3): sqrt(K / (K + 1) sum (L_i - mean)^2).
CREATE OR REPLACE VIEW ensemble_size AS
SELECT ensemble_id, averaging, len(subset) AS members, if(count(val_loss) = count(*), avg(val_loss), NULL) AS mean_loss,
    min(val_loss) AS least, max(val_loss) AS greatest, count(*) AS subsets,
    if(len(subset) > 1 AND count(val_loss) = len(subset) + 1, sqrt(len(subset) * var_pop(val_loss)), NULL) AS next_error
FROM ensemble_loss
GROUP BY ensemble_id, averaging, len(subset);

-- One row a (cell, ensemble, averaging): its law over K. Role and draw are those of `cell_ensemble`.
CREATE OR REPLACE VIEW ensemble_asymptote AS
SELECT cell_id, whole.ensemble_id, role, draw, coordinates, whole.averaging, whole.members, whole.mean_loss AS val_loss,
    value AS limit_loss, a, alpha, e, rmse, standard_error, without.next_error AS val_loss_error, interval_reason,
    if(fit_id IS NULL, 'not fitted yet; `dataeff refresh` does it', reason) AS reason, low AS e_low, high AS e_high
FROM cell_ensemble JOIN ensemble USING (ensemble_id)
    JOIN ensemble_size AS whole ON whole.ensemble_id = ensemble.ensemble_id AND whole.members = len(ensemble.members)
    LEFT JOIN ensemble_size AS without ON without.ensemble_id = whole.ensemble_id AND without.averaging = whole.averaging
        AND without.members = whole.members - 1
    LEFT JOIN fit ON fit_id = whole.ensemble_id || '/' || whole.averaging;
