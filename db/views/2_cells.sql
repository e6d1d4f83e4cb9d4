-- What the search found in each cell: the points it ran, the run-to-run noise, the best point, what that point is worth. Where
-- the best point lies and what certifies it, `dataeff.search.coordinate_descent` says and table `cell` holds.

-- Every point of a grid of this shape one step from `point`, as coordinates.
CREATE OR REPLACE MACRO neighbours(point, shape) AS flatten(list_transform(shape, lambda length, axis:
    list_transform(list_filter([point[axis] - 1, point[axis] + 1], lambda moved: moved BETWEEN 0 AND length - 1), lambda moved:
        list_transform(point, lambda index, i: if(i = axis, moved, index)))));

-- One row a grid point that a cell's search has run. In a cell with objective 'K' its value is the loss of the point's
-- ensemble, and it was run once the ensemble was evaluated or a member diverged.
CREATE OR REPLACE VIEW grid_point AS
WITH largest AS (
    SELECT cell_id, coordinates, arg_max_null(mean_loss, (curve.members, ensemble_id)) AS objective_loss
    FROM cell JOIN cell_ensemble USING (cell_id) JOIN ensemble_size AS curve USING (ensemble_id, averaging)
    WHERE objective = 'K' AND role = 'member'
    GROUP BY cell_id, coordinates
), point AS (
    SELECT cell_id, trial.coordinates, arg_min(run_id, (run.val_loss IS NULL, run.val_loss, run_id)) AS run_id,
        min(run.val_loss) AS objective_loss
    FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id)
    WHERE trial.role = 'search' AND objective = 'single'
    GROUP BY cell_id, trial.coordinates
    UNION ALL
    SELECT cell_id, trial.coordinates, min(run_id) FILTER (role = 'search'),
        if(bool_or(status = 'diverged'), NULL, any_value(objective_loss))
    FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id) LEFT JOIN largest
        ON largest.cell_id = trial.cell_id AND largest.coordinates = trial.coordinates
    WHERE trial.role IN ('search', 'member') AND objective = 'K'
    GROUP BY cell_id, trial.coordinates
    HAVING bool_or(status = 'diverged' OR largest.cell_id IS NOT NULL)
)
SELECT cell_id, coordinates, run_id, objective_loss, if(coordinates = best, edges, NULL) AS edges,
    if(objective_loss = min(objective_loss) OVER (PARTITION BY cell_id), len(neighbours_missing), NULL) AS missing,
    coalesce(coordinates = best, false) AS is_best
FROM point JOIN cell USING (cell_id);

-- Pooled standard deviation of val_loss between runs of a recipe that differ in their seeds alone, not in their draw: the root of
-- sum (n_i - 1) s_i^2 / sum (n_i - 1) over its points run more than once.
CREATE OR REPLACE VIEW noise AS
WITH replicated AS (
    SELECT study, recipe, count(*) - 1 AS freedom, var_samp(val_loss) AS variance
    FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    WHERE val_loss IS NOT NULL AND role <> 'claim'
    GROUP BY study, recipe, cell_id, trial.coordinates, draw
    HAVING count(*) > 1
)
SELECT study, recipe, sqrt(sum(freedom * variance) / sum(freedom)) AS noise_sd,
    coalesce(sum(freedom), 0)::BIGINT AS degrees_of_freedom, count(variance) AS points,
    if(count(variance) = 0, 'no point was run with more than one seed', NULL) AS reason
FROM (SELECT DISTINCT study, recipe FROM cell) LEFT JOIN replicated USING (study, recipe)
GROUP BY study, recipe;

-- One row a cell: its optimum. val_loss_mean, val_loss_sd and seeds are over the single models at that point that chose nothing:
-- those on other draws of the data, where there are any, or else those of other seeds; the run that chose, where it is alone.
CREATE OR REPLACE VIEW best_run AS
WITH best AS (
    SELECT cell_id, trial.coordinates, if(objective = 'K', min(run_id), arg_min(run_id, (val_loss IS NULL, val_loss, run_id))) AS run_id
    FROM cell JOIN trial USING (cell_id) JOIN run USING (run_id)
    WHERE role = 'search' AND trial.coordinates = best
    GROUP BY cell_id, objective, trial.coordinates
), tried AS (
    SELECT cell_id, status, val_loss, CASE WHEN trial.coordinates IS DISTINCT FROM best OR role = 'claim' THEN NULL
        WHEN trial.run_id = best_id OR role = 'search' OR (role = 'member' AND objective = 'K') THEN 0 WHEN draw > 0 THEN 2 ELSE 1 END AS rank
    FROM trial JOIN run ON run.run_id = trial.run_id JOIN cell USING (cell_id)
        LEFT JOIN (SELECT cell_id, run_id AS best_id FROM best) USING (cell_id)
), counted AS (
    SELECT cell_id, avg(val_loss) FILTER (rank = top) AS val_loss_mean, stddev_samp(val_loss) FILTER (rank = top) AS val_loss_sd,
        count(val_loss) FILTER (rank = top) AS seeds, count(*) AS runs, count(*) FILTER (status = 'diverged') AS diverged,
        coalesce(any_value(top) = 0, true) AS selected
    FROM (SELECT *, max(rank) FILTER (val_loss IS NOT NULL) OVER (PARTITION BY cell_id) AS top FROM tried) GROUP BY cell_id
)
SELECT cell_id, study, recipe, recipe_limit, cell.seed_tokens, size, cell.parameters_total, cell.parameters_non_embedding,
    best.run_id, best.coordinates, lr, weight_decay, epochs, run.val_loss, val_loss_mean, val_loss_sd,
    coalesce(seeds, 0) AS seeds, selected, coalesce(runs, 0) AS runs, coalesce(diverged, 0) AS diverged,
    if(best.run_id IS NULL, cell.reason, NULL) AS reason
FROM cell LEFT JOIN best USING (cell_id) LEFT JOIN counted USING (cell_id) LEFT JOIN run ON run.run_id = best.run_id;

-- One row a cell: whether its optimum is certified, and how many of its neighbours are as good within the noise.
CREATE OR REPLACE VIEW certificate AS
WITH near AS (
    SELECT cell_id,
        count(DISTINCT trial.coordinates) FILTER (trial.coordinates <> best AND val_loss - best_loss <= 2 * noise_sd) AS within_noise
    FROM cell JOIN noise USING (study, recipe) JOIN trial USING (cell_id) JOIN run USING (run_id)
    WHERE role = 'search' AND objective = 'single' AND noise_sd IS NOT NULL
        AND list_distance(trial.coordinates::DOUBLE[], best::DOUBLE[]) <= 1
    GROUP BY cell_id
)
SELECT cell_id, cell.study, cell.recipe, cell.seed_tokens, cell.size, cell.parameters_total, best_run.run_id, state,
    if(best IS NULL, NULL, len(neighbours(best, shape))) AS neighbours_in_grid, neighbours_run,
    len(neighbours_missing) AS neighbours_missing, margin, ties, within_noise, edges,
    cell.reason || if(within_noise > ties, '; ' || within_noise || ' within the run-to-run noise', '') || if(objective = 'K',
        '; each point is the loss of ' || members || ' members together', '') AS reason
FROM cell JOIN best_run USING (cell_id) LEFT JOIN near USING (cell_id);

-- One row a (study, recipe, size) that uses a run, and one a run that no study uses: for questions about runs by recipe.
CREATE OR REPLACE VIEW study_run AS
SELECT cell.study, cell.recipe, cell.size, trial.role, trial.cell_id, trial.coordinates, run.*
FROM run LEFT JOIN trial USING (run_id) LEFT JOIN cell USING (cell_id);
