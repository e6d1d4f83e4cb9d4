-- Laws over a cell's optimum: the limit of each recipe at each budget, its law over budgets, and data efficiency. Values and
-- intervals are those of table `fit`, which dataeff.study.fits fills; what each covers, and what it does not: db/README.md.

-- One row a (study, recipe): hash of what is recorded of it and of the study's baseline, and of what these views make of it.
CREATE OR REPLACE VIEW evidence AS
WITH item AS (
    SELECT study, recipe, concat_ws(' ', cell_id, role, run_id) AS fact
    FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id) WHERE role <> 'claim'
    UNION ALL
    SELECT study, recipe, concat_ws(' ', cell_id, role, draw, ensemble_id)
    FROM cell_ensemble JOIN cell USING (cell_id) JOIN ensemble USING (ensemble_id) WHERE role <> 'claim'
    UNION ALL
    SELECT study, recipe, concat_ws(' ', cell_id, recipe_limit, averaging, members, best) FROM cell
), own AS (
    SELECT study, recipe, hex(bit_xor(hash(fact))) AS evidence FROM item GROUP BY study, recipe
)
SELECT own.study, own.recipe, concat_ws(' ', own.evidence, study.baseline, base.evidence,
    (SELECT version FROM schema)) AS evidence
FROM own JOIN study ON study.name = own.study LEFT JOIN own AS base ON base.study = own.study AND base.recipe = study.baseline;

-- Every fit of a study, and whether what it rests on has changed since.
CREATE OR REPLACE VIEW fit_state AS
SELECT * EXCLUDE (now) REPLACE (if(stale, concat_ws('; ', 'runs were added since the fit: `dataeff refresh`', interval_reason),
    interval_reason) AS interval_reason)
FROM (
    SELECT fit.*, evidence.evidence AS now, fit.evidence IS DISTINCT FROM now AS stale
    FROM fit LEFT JOIN evidence USING (study, recipe) WHERE quantity <> 'members'
);

-- One row a (cell, averaging, K): the loss of K members of the ensemble at the cell's optimum.
CREATE OR REPLACE VIEW ensemble_curve AS
SELECT study, recipe, seed_tokens, size, parameters_total, cell_id, ensemble_id, averaging, members, mean_loss, least,
    greatest, subsets
FROM best_run JOIN cell_ensemble USING (cell_id, coordinates) JOIN ensemble_size AS curve USING (ensemble_id)
WHERE role = 'member';

-- One row a (cell, draw of the data): what estimates the loss of its optimum there, of the single models or of the ensemble that
-- chose nothing; `selected` where nothing but what chose is there. `error` of an ensemble is by the jackknife over members, and
-- `variance` of single models over all `freedom` + 1 runs of the draw, that which chose among them.
CREATE OR REPLACE VIEW estimate AS
WITH optimum AS (
    SELECT cell_id, best AS coordinates, averaging, recipe_limit IN ('K', 'K then N') AS in_k, members > 1 OR in_k AS ensembled FROM cell
), single AS (
    SELECT cell_id, coalesce(draw, 0) AS draw, role = 'search' AS selected, val_loss,
        var_samp(val_loss) OVER same AS variance, count(*) OVER same - 1 AS freedom
    FROM optimum JOIN trial USING (cell_id, coordinates) JOIN run USING (run_id)
    WHERE NOT ensembled AND role <> 'claim' AND val_loss IS NOT NULL WINDOW same AS (PARTITION BY cell_id, coalesce(draw, 0))
), item AS (
    SELECT cell_id, draw, selected, avg(val_loss) AS reached_loss, count(*) AS runs, any_value(variance) AS variance,
        any_value(freedom) AS freedom, NULL AS error, reached_loss AS limit_loss, NULL AS limit_error, NULL AS reason,
        NULL AS ensemble_id, 1 AS members
    FROM single GROUP BY cell_id, draw, selected
    UNION ALL BY NAME
    SELECT cell_id, law.draw, role = 'member' AS selected, law.val_loss AS reached_loss, law.members AS runs,
        val_loss_error AS error, if(in_k, law.limit_loss, reached_loss) AS limit_loss, if(in_k, standard_error, error) AS limit_error,
        if(in_k, reason, NULL) AS reason, ensemble_id, law.members
    FROM optimum JOIN ensemble_asymptote AS law USING (cell_id, coordinates, averaging) WHERE ensembled AND role <> 'claim'
    QUALIFY row_number() OVER (PARTITION BY cell_id, role, law.draw ORDER BY law.members DESC, ensemble_id DESC) = 1
)
SELECT * FROM item
QUALIFY rank() OVER (PARTITION BY cell_id ORDER BY selected, draw = 0) = 1;

-- One row a cell: what its optimum, or the ensemble of its members, reached, and the limit in K of recipes that ask for it.
-- `chosen_by` is the loss that its search and the choice of a size saw.
CREATE OR REPLACE VIEW cell_limit AS
WITH best AS (
    SELECT best_run.*, best_loss, averaging, best_run.recipe_limit IN ('K', 'K then N') AS in_k, cell.members > 1 OR in_k AS ensembled
    FROM best_run JOIN cell USING (cell_id)
), law AS (
    SELECT law.* FROM best JOIN ensemble_asymptote AS law USING (cell_id, coordinates, averaging)
    WHERE ensembled AND role = 'member'
    QUALIFY row_number() OVER (PARTITION BY cell_id ORDER BY law.members DESC, ensemble_id DESC) = 1
), cost AS (
    SELECT ensemble_id, sum(training_flops) AS training_flops
    FROM (SELECT DISTINCT ensemble_id, split_part(unnest(members), '@', 1) AS run_id FROM ensemble) JOIN run USING (run_id)
    GROUP BY ensemble_id
), own AS (
    SELECT cell_id, avg(reached_loss) AS reached_loss, bool_and(selected) AS selected, count(*) AS draws,
        if(count(limit_loss) = count(*), avg(limit_loss), NULL) AS limit_loss, min(reason) AS reason
    FROM estimate GROUP BY cell_id
)
SELECT cell_id, best.study, best.recipe, recipe_limit, best.seed_tokens, size, best.parameters_total, ensemble_id,
    if(ensembled, members, 1) AS members, own.reached_loss, coalesce(optimum.value, own.limit_loss) AS limit_loss,
    own.selected, draws, if(ensembled, law.val_loss, best_loss) AS chosen_by, law.a, law.alpha, law.e, law.rmse,
    reached.standard_error AS reached_error, reached.low AS reached_low, reached.high AS reached_high,
    optimum.standard_error, optimum.low, optimum.high, optimum.interval_reason,
    if(ensembled, cost.training_flops, run.training_flops) AS training_flops,
    coalesce(best.reason, if(ensembled AND own.reached_loss IS NULL, 'no ensemble was evaluated at the optimum', own.reason)) AS reason
FROM best LEFT JOIN law USING (cell_id) LEFT JOIN cost USING (ensemble_id) LEFT JOIN own USING (cell_id)
    LEFT JOIN fit AS reached ON reached.fit_id = cell_id || '/reached'
    LEFT JOIN fit AS optimum ON optimum.fit_id = cell_id || '/optimum'
    LEFT JOIN run ON run.run_id = best.run_id;

-- One row a (study, recipe, seed_tokens). Laws in N take N = parameters_total in units of 1e9.
CREATE OR REPLACE VIEW asymptote AS
WITH grouped AS (
    SELECT study, recipe, optimum.recipe_limit, seed_tokens, optimum.recipe_limit IN ('N', 'K then N') AS has_law,
        if(optimum.recipe_limit IN ('K', 'K then N'), 'limit in K: ', 'loss: ') AS what,
        arg_min(optimum, chosen_by) FILTER (reached_loss IS NOT NULL) AS chosen, bool_or(selected) AS selected, max(draws) AS draws,
        count(*) AS cells, count(*) - count(limit_loss) AS lacking, min(optimum.reason) FILTER (limit_loss IS NULL) AS lack,
        count(DISTINCT optimum.parameters_total) FILTER (limit_loss IS NOT NULL) AS sizes,
        max(optimum.parameters_total) FILTER (limit_loss IS NOT NULL) AS largest_parameters, max(optimum.members) AS largest_members,
        count(*) FILTER (state = 'certified') AS certified, count(*) FILTER (state = 'boundary') AS boundary,
        count(*) FILTER (state NOT IN ('certified', 'boundary')) AS open
    FROM cell_limit AS optimum JOIN cell USING (cell_id, study, recipe, seed_tokens)
    GROUP BY study, recipe, optimum.recipe_limit, seed_tokens
)
SELECT study, recipe, seed_tokens, CASE recipe_limit WHEN 'best' THEN 'best over N' WHEN 'N' THEN 'asymptote'
        WHEN 'K' THEN 'asymptote in K, best over N' ELSE 'asymptote in K, then N' END AS kind,
    CASE recipe_limit WHEN 'K' THEN 'members' WHEN 'K then N' THEN 'members, then parameters_total' ELSE 'parameters_total' END
        AS variable,
    value AS limit_loss, if(has_law, fit.a, chosen.a) AS a, if(has_law, fit.alpha, chosen.alpha) AS alpha,
    if(has_law, fit.e, chosen.e) AS e, if(recipe_limit = 'K', coalesce(chosen.members, 0), sizes) AS points,
    if(has_law, fit.rmse, chosen.rmse) AS rmse, low AS e_low, high AS e_high, noise_sd, fit.interval_reason,
    CASE WHEN fit_id IS NULL THEN 'not fitted yet; `dataeff refresh` does it'
        WHEN lacking = cells THEN 'no size has a ' || what || lack
        WHEN lacking > 0 AND has_law THEN fit.reason || '; ' || lacking || ' of ' || cells || ' sizes have no ' || what || lack
        ELSE fit.reason END AS reason,
    coalesce(stale, true) AS stale, chosen.reached_loss AS best_trained,
    chosen.cell_id AS best_cell, largest_parameters, largest_members, cells, certified, boundary, open, draws, selected,
    value - best_trained AS beyond, held_out, draw_sd, seed_sd
FROM grouped LEFT JOIN noise USING (study, recipe)
    LEFT JOIN (FROM fit_state WHERE quantity = 'asymptote') AS fit USING (study, recipe, seed_tokens);

-- One row a (study, recipe). The law of the recipe's limits over D = seed_tokens in units of 1e6.
CREATE OR REPLACE VIEW data_law AS
SELECT study, recipe, 'seed_tokens' AS variable, value AS limit_loss, fit.a, fit.alpha, fit.e, count(limits.limit_loss) AS points,
    count(*) AS budgets, max(limits.seed_tokens) FILTER (limits.limit_loss IS NOT NULL) AS largest_budget, fit.rmse,
    low AS e_low, high AS e_high, fit.interval_reason,
    if(fit_id IS NULL, 'not fitted yet; `dataeff refresh` does it', fit.reason) AS reason, coalesce(fit.stale, true) AS stale,
    sum(cells)::BIGINT AS cells, sum(certified)::BIGINT AS certified, sum(boundary)::BIGINT AS boundary, sum(open)::BIGINT AS open
FROM asymptote AS limits LEFT JOIN (FROM fit_state WHERE quantity = 'data_law') AS fit USING (study, recipe)
GROUP BY ALL;

-- One row a (study, recipe, seed_tokens): the tokens the study's baseline recipe needs to reach the recipe's limit there, by
-- its data law, over the tokens the recipe had.
CREATE OR REPLACE VIEW data_efficiency AS
SELECT limits.* EXCLUDE (variable, a, alpha, e, rmse, noise_sd, interval_reason, reason), baseline, law.tokens_needed,
    law.value AS data_efficiency, law.low AS data_efficiency_low, law.high AS data_efficiency_high,
    law.tokens_needed > 1.001 * law.largest_budget AS extrapolated, law.interval_reason, trained.value AS data_efficiency_trained,
    trained.low AS data_efficiency_trained_low, trained.high AS data_efficiency_trained_high, trained.largest_budget,
    trained.tokens_needed > 1.001 * trained.largest_budget AS trained_extrapolated, trained.reason AS trained_reason,
    if(limit_loss IS NULL, 'this recipe has no limit here: ' || limits.reason, law.reason) AS reason
FROM asymptote AS limits LEFT JOIN study ON study.name = study
    LEFT JOIN (FROM fit_state WHERE quantity = 'data_efficiency') AS law USING (study, recipe, seed_tokens)
    LEFT JOIN (FROM fit WHERE quantity = 'data_efficiency_trained') AS trained USING (study, recipe, seed_tokens);

-- One row a (study, recipe, seed_tokens): the limit beside the best loss that was reached and what that took.
CREATE OR REPLACE VIEW recipe_summary AS
SELECT limits.* EXCLUDE (baseline, interval_reason), own.size, own.members, own.parameters_total,
    own.members * own.parameters_total AS inference_parameters, own.training_flops, teacher.training_flops AS teacher_flops
FROM data_efficiency AS limits LEFT JOIN cell_limit AS own ON own.cell_id = best_cell
    LEFT JOIN cell ON cell.cell_id = best_cell LEFT JOIN cell_limit AS teacher ON teacher.cell_id = cell.teacher;
