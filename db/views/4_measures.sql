-- What was measured of the models at each cell's optimum.

-- One row a (cell, gamma): validation loss after Gaussian noise on the weights, over the models at the optimum, of whichever seed
-- and draw of the data, and over draws of the noise, which all models share.
CREATE OR REPLACE VIEW perturbation AS
WITH noisy AS (
    SELECT job_id, inputs[1] AS run_id, (result->>'$.base_loss')::DOUBLE AS base_loss,
        unnest(from_json(result->'$.losses', '[{"gamma": "DOUBLE", "number": "BIGINT", "val_loss": "DOUBLE"}]'), recursive := true)
    FROM job WHERE kind = 'perturb'
), model AS (
    SELECT cell_id, run_id, gamma, any_value(base_loss) AS base_loss, count(*) AS noises,
        if(count(val_loss) = count(*), avg(val_loss), NULL) AS own_loss
    FROM cell JOIN trial USING (cell_id) JOIN noisy USING (run_id)
    WHERE coordinates = best AND role <> 'claim' GROUP BY ALL
), pooled AS (
    SELECT cell_id, gamma, count(*) AS models, max(noises) AS noises, avg(base_loss) AS base_loss,
        if(count(own_loss) = count(*), avg(own_loss), NULL) AS val_loss, val_loss - avg(base_loss) AS rise,
        if(count(own_loss) = count(*), stddev_samp(own_loss - base_loss) / sqrt(count(*)), NULL) AS rise_error
    FROM model GROUP BY cell_id, gamma
)
SELECT study, recipe, seed_tokens, size, parameters_total, cell_id, gamma, models, noises, pooled.base_loss, val_loss, rise, rise_error,
    if(val_loss IS NULL, 'a loss is not finite', NULL) AS reason
FROM pooled JOIN cell USING (cell_id);
