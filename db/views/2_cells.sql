-- What the search found in each cell: the points it ran, the run-to-run noise, the best point, what that point is worth.

-- Edges beyond which nothing can lie, so that an optimum there is no boundary case (dataeff/specs/grid.py).
CREATE OR REPLACE MACRO natural_lower_edge(axis) AS
    CASE axis WHEN 'weight_decay' THEN 0.0 WHEN 'epochs' THEN 1.0 WHEN 'dropout' THEN 0.0 END;

-- Every point of a grid of this shape one step from `point`, as coordinates.
CREATE OR REPLACE MACRO neighbours(point, shape) AS flatten(list_transform(shape, lambda length, axis:
    list_transform(list_filter([point[axis] - 1, point[axis] + 1], lambda moved: moved BETWEEN 0 AND length - 1), lambda moved:
        list_transform(point, lambda index, i: if(i = axis, moved, index)))));

-- One row a grid point that a cell's search has run. In a cell with objective 'K' its value is what the point's ensemble is
-- worth, and it was run once the ensemble was evaluated or a member diverged. Points of exactly the cell's least loss that
-- single steps connect are one plateau, and `missing` counts the neighbours of all its points that were not run. The best of
-- the points of least loss has the fewest missing, then is on no edge, then is the lowest (dataeff/search/coordinate_descent.py).
CREATE OR REPLACE VIEW grid_point AS
WITH RECURSIVE worth AS (
    SELECT cell_id, cell_ensemble.coordinates, ensemble_id, max(size.members) AS members,
        power_law(list(size.members), list(size.val_loss)) AS fit, arg_max_null(size.val_loss, size.members) AS val_loss
    FROM cell JOIN cell_ensemble USING (cell_id) JOIN ensemble_size AS size USING (ensemble_id, averaging)
    WHERE objective = 'K'
    GROUP BY cell_id, cell_ensemble.coordinates, ensemble_id
), largest AS (
    SELECT cell_id, coordinates, arg_max_null(ensemble_objective(fit, val_loss), (members, ensemble_id)) AS val_loss
    FROM worth GROUP BY cell_id, coordinates
), point AS MATERIALIZED (
    SELECT cell_id, trial.coordinates, arg_min(run_id, (run.val_loss IS NULL, run.val_loss, run_id)) AS run_id,
        min(run.val_loss) AS val_loss
    FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id)
    WHERE trial.role = 'search' AND objective = 'single'
    GROUP BY cell_id, trial.coordinates
    UNION ALL
    SELECT cell_id, trial.coordinates, min(run_id) FILTER (role = 'search'),
        if(bool_or(status = 'diverged'), NULL, any_value(largest.val_loss))
    FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id) LEFT JOIN largest
        ON largest.cell_id = trial.cell_id AND largest.coordinates = trial.coordinates
    WHERE trial.role IN ('search', 'member') AND objective = 'K'
    GROUP BY cell_id, trial.coordinates
    HAVING bool_or(status = 'diverged' OR largest.cell_id IS NOT NULL)
), edged AS (
    SELECT point.*, shape, flatten(list_transform(shape, lambda length, i: CASE
        WHEN length = 1 THEN []
        WHEN coordinates[i] = length - 1 THEN [map_keys(axis)[i] || ' upper']
        WHEN coordinates[i] = 0 AND natural_lower_edge(map_keys(axis)[i]) IS DISTINCT FROM map_values(axis)[i][1]
            THEN [map_keys(axis)[i] || ' lower']
        ELSE [] END)) AS edges
    FROM point JOIN cell USING (cell_id), LATERAL (SELECT axes::MAP(VARCHAR, DOUBLE[]) AS axis)
), least AS (
    SELECT cell_id, coordinates, shape FROM edged QUALIFY val_loss = min(val_loss) OVER (PARTITION BY cell_id)
), plateau AS (
    SELECT cell_id, coordinates AS origin, coordinates, shape FROM least
    UNION
    SELECT cell_id, origin, least.coordinates, least.shape
    FROM plateau JOIN least USING (cell_id)
    WHERE list_distance(least.coordinates::DOUBLE[], plateau.coordinates::DOUBLE[]) = 1
), gap AS (
    SELECT cell_id, origin, count(*) AS missing
    FROM (SELECT DISTINCT cell_id, origin, unnest(neighbours(coordinates, shape)) AS coordinates FROM plateau)
        ANTI JOIN point USING (cell_id, coordinates)
    GROUP BY cell_id, origin
)
SELECT edged.cell_id, edged.coordinates, run_id, val_loss, edges,
    if(least.cell_id IS NULL, NULL, coalesce(missing, 0)) AS missing,
    least.cell_id IS NOT NULL AND row_number() OVER (PARTITION BY edged.cell_id
        ORDER BY least.cell_id IS NULL, coalesce(missing, 0) > 0, len(edges) > 0, edged.coordinates) = 1 AS is_best
FROM edged LEFT JOIN least ON least.cell_id = edged.cell_id AND least.coordinates = edged.coordinates
    LEFT JOIN gap ON gap.cell_id = edged.cell_id AND gap.origin = edged.coordinates;

-- Pooled standard deviation of val_loss between runs of a recipe that differ in their seeds alone: the root of
-- sum (n_i - 1) s_i^2 / sum (n_i - 1) over its points run more than once.
CREATE OR REPLACE VIEW noise AS
WITH replicated AS (
    SELECT study, recipe, count(*) - 1 AS freedom, var_samp(val_loss) AS variance
    FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    WHERE val_loss IS NOT NULL
    GROUP BY study, recipe, cell_id, trial.coordinates
    HAVING count(*) > 1
)
SELECT study, recipe, sqrt(sum(freedom * variance) / sum(freedom)) AS noise_sd,
    coalesce(sum(freedom), 0)::BIGINT AS degrees_of_freedom, count(variance) AS points,
    if(count(variance) = 0, 'no point was run with more than one seed', NULL) AS reason
FROM (SELECT DISTINCT study, recipe FROM cell) LEFT JOIN replicated USING (study, recipe)
GROUP BY study, recipe;

-- Why a cell has no optimum; a cell that never started has no starts, and its note says why.
CREATE OR REPLACE MACRO no_optimum(tried, stopped, starts, note) AS
    coalesce(stopped, if(json_array_length(starts) = 0, note, NULL),
        if(tried, 'every run of the search diverged', 'no run of the search has finished'));

-- The cell whose search a cell's optimum comes from: itself, or where nothing is tuned that of its base.
CREATE OR REPLACE VIEW cell_origin AS
WITH RECURSIVE followed AS (
    SELECT cell_id, cell_id AS origin, base, list_product(shape) = 1 AND base IS NOT NULL AS follows FROM cell
    UNION ALL
    SELECT followed.cell_id, cell.cell_id, cell.base, list_product(cell.shape) = 1 AND cell.base IS NOT NULL
    FROM followed JOIN cell ON cell.cell_id = followed.base WHERE follows
)
SELECT cell_id, origin FROM followed WHERE NOT follows;

-- One row a cell: its optimum. val_loss_mean, val_loss_sd and seeds are over the best run, its replicates and the members
-- trained at its point: single models, whatever the objective.
CREATE OR REPLACE VIEW best_run AS
WITH best AS (
    SELECT cell_id, run_id, coordinates FROM grid_point WHERE is_best
), seeded AS (
    SELECT cell_id, avg(run.val_loss) AS val_loss_mean, stddev_samp(run.val_loss) AS val_loss_sd,
        count(run.val_loss) AS seeds
    FROM best JOIN trial USING (cell_id) JOIN run ON run.run_id = trial.run_id
    WHERE trial.run_id = best.run_id OR (role IN ('replicate', 'member') AND trial.coordinates = best.coordinates)
    GROUP BY cell_id
), counted AS (
    SELECT cell_id, count(*) AS runs, count(*) FILTER (status = 'diverged') AS diverged
    FROM trial JOIN run USING (run_id)
    GROUP BY cell_id
)
SELECT cell_id, study, recipe, recipe_limit, cell.seed_tokens, size, cell.parameters_total, cell.parameters_non_embedding,
    best.run_id, best.coordinates, lr, weight_decay, epochs, run.val_loss, val_loss_mean, val_loss_sd,
    coalesce(seeds, 0) AS seeds, coalesce(runs, 0) AS runs, coalesce(diverged, 0) AS diverged,
    if(best.run_id IS NULL, no_optimum(diverged > 0, search_stopped, starts, note), NULL) AS reason
FROM cell LEFT JOIN best USING (cell_id) LEFT JOIN seeded USING (cell_id) LEFT JOIN counted USING (cell_id)
    LEFT JOIN run ON run.run_id = best.run_id;

-- One row a cell: whether its optimum is certified.
CREATE OR REPLACE VIEW certificate AS
WITH point AS MATERIALIZED (
    FROM grid_point
), best AS (
    SELECT cell_id, run_id, point.coordinates, val_loss, edges, missing, if(objective = 'single', noise_sd, NULL) AS noise_sd,
        neighbours(point.coordinates, shape) AS around
    FROM point JOIN cell USING (cell_id) LEFT JOIN noise USING (study, recipe)
    WHERE is_best
), near AS (
    SELECT cell_id, count(*) AS run, min(point.val_loss) - any_value(best.val_loss) AS margin,
        count(*) FILTER (point.val_loss = best.val_loss) AS ties,
        count(*) FILTER (point.val_loss - best.val_loss <= 2 * noise_sd) AS within_noise
    FROM best JOIN point USING (cell_id)
    WHERE list_contains(around, point.coordinates)
    GROUP BY cell_id
), fact AS (
    SELECT cell_id, study, recipe, seed_tokens, size, parameters_total, run_id, edges, missing, len(around) AS neighbours_in_grid,
        if(around IS NULL, NULL, coalesce(run, 0)) AS neighbours_run, margin, if(around IS NULL, NULL, coalesce(ties, 0)) AS ties,
        if(noise_sd IS NULL, NULL, coalesce(within_noise, 0)) AS within_noise,
        if(objective = 'K', '; each point is the ' || if(members < 3, 'loss', 'limit') || ' of ' || members || ' members', '')
            AS price,
        no_optimum(cell_id IN (SELECT cell_id FROM point), search_stopped, starts, note) AS no_best,
        len(around) = 0 AND run_id IN (SELECT run_id FROM run WHERE source IS NOT NULL) AS lone -- and imported
    FROM cell LEFT JOIN best USING (cell_id) LEFT JOIN near USING (cell_id)
), own AS (
    SELECT cell_id, study, recipe, seed_tokens, size, parameters_total, run_id,
    CASE WHEN run_id IS NULL OR missing > 0 OR lone THEN 'open' WHEN len(edges) > 0 THEN 'boundary' ELSE 'certified' END AS state,
    neighbours_in_grid, neighbours_run, missing AS neighbours_missing, margin, ties, within_noise, edges,
    CASE
        WHEN run_id IS NULL THEN no_best
        WHEN missing > neighbours_in_grid - neighbours_run
            THEN missing || ' neighbours of the best point and of points with exactly its loss were not run'
        WHEN missing > 0 THEN missing || ' of ' || neighbours_in_grid || ' neighbours were not run'
        WHEN len(edges) > 0 THEN 'no neighbour is better, but the best point lies on an edge of the grid ('
            || array_to_string(edges, ', ') || '): the optimum may lie outside'
        WHEN lone THEN 'one point was imported; what was searched around it is not known'
        WHEN neighbours_in_grid = 0 THEN 'the grid has one point, and it was run'
        ELSE 'all ' || neighbours_in_grid || ' neighbours were run and none is better' END
        || if(ties > 0, '; ' || ties || ' have exactly the same loss', '')
        || if(within_noise > ties, '; ' || within_noise || ' within the run-to-run noise', '') || price AS reason
    FROM fact
)
SELECT own.* REPLACE (
    if(own.state = 'certified', origin.state, own.state) AS state,
    if(own.state = 'certified' AND origin.cell_id <> own.cell_id, 'follows ' || origin.recipe || ': ' || origin.reason, own.reason)
        AS reason)
FROM own JOIN cell_origin USING (cell_id) LEFT JOIN own AS origin ON origin.cell_id = cell_origin.origin;
