-- Schema version 1. {q} stands for the schema and the prefix of the names, and {p} for the prefix alone.
-- The ids are text as in the keys of Redis: ':', '%', '{', '}' and control characters are percent-encoded.

-- The version of these tables.
CREATE TABLE {q}schema (
    version integer NOT NULL
);

-- The owners that have records. Its lock orders the creates and deletes of one owner.
CREATE TABLE {q}owners (
    name    text   COLLATE "C" PRIMARY KEY,
    records bigint NOT NULL,            -- how many rows of `records` the owner has, expired or not
    newest  bigint NOT NULL             -- the latest creation time of its records, in microseconds since 1970
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {q}records (
    owner      text   COLLATE "C" NOT NULL,
    task       text   COLLATE "C" NOT NULL,
    version    bigint NOT NULL,         -- 1, 2, 3, ...
    created_at bigint NOT NULL,         -- microseconds since 1970; no two records of an owner share it
    expires_at bigint,                  -- milliseconds since 1970; NULL for never
    parts      jsonb  NOT NULL,         -- names and sizes of the parts: {"checkpoint": 5000, "output": 123}
    data       bytea  NOT NULL,
    PRIMARY KEY (owner, task)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE UNIQUE INDEX {p}records_by_creation ON {q}records (owner, created_at);
-- Finds what has expired, and counts the expired records of an owner without reading the rows.
CREATE INDEX {p}records_by_expiry ON {q}records (expires_at, owner) WHERE expires_at IS NOT NULL;

-- Large fields of records. An update of a record does not rewrite them.
CREATE TABLE {q}parts (
    owner text  COLLATE "C" NOT NULL,
    task  text  COLLATE "C" NOT NULL,
    name  text  COLLATE "C" NOT NULL,
    data  bytea NOT NULL,
    PRIMARY KEY (owner, task, name),
    FOREIGN KEY (owner, task) REFERENCES {q}records ON DELETE CASCADE
);

-- Compressing megabytes costs more than storing them.
ALTER TABLE {q}parts ALTER COLUMN data SET STORAGE EXTERNAL;

-- When to look at a task. A timer may exist without a record.
CREATE TABLE {q}timers (
    queue  text   COLLATE "C" NOT NULL,
    owner  text   COLLATE "C" NOT NULL,
    task   text   COLLATE "C" NOT NULL,
    due_at bigint NOT NULL,             -- milliseconds since 1970
    token  bigint NOT NULL,             -- new after each write of the timer
    PRIMARY KEY (queue, owner, task)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE INDEX {p}timers_by_due ON {q}timers (queue, due_at, owner, task);

CREATE SEQUENCE {q}tokens CACHE 100;

-- Returns the clock of the server, in microseconds since 1970.
CREATE FUNCTION {q}clock() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE
AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint';

-- Counts the records that a statement deletes. Rows that somebody deletes by hand are counted too.
CREATE FUNCTION {q}count_deleted() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE {q}owners AS o SET records = o.records - d.records
    FROM (SELECT owner, count(*) AS records FROM deleted GROUP BY owner) AS d
    WHERE o.name = d.owner;
    DELETE FROM {q}owners AS o USING deleted AS d WHERE o.name = d.owner AND o.records <= 0;
    RETURN NULL;
END
$body$;

CREATE TRIGGER {p}count_deleted AFTER DELETE ON {q}records
REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION {q}count_deleted();

-- Removes at most `most` expired records, those that expired first. Waits for no lock: it leaves out what another transaction uses.
-- Returns how many it removed.
CREATE FUNCTION {q}purge(most integer) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
    now_ms  CONSTANT bigint := {q}clock() / 1000;
    removed bigint;
BEGIN
    -- The owners are locked before their records, as everywhere.
    WITH expired AS MATERIALIZED (
        SELECT r.owner, r.task FROM {q}records AS r WHERE r.expires_at <= now_ms ORDER BY r.expires_at LIMIT most
    ), free_owners AS MATERIALIZED (
        SELECT o.name FROM {q}owners AS o WHERE o.name IN (SELECT e.owner FROM expired AS e) FOR UPDATE SKIP LOCKED
    ), free_records AS MATERIALIZED (
        SELECT r.owner, r.task FROM expired AS e JOIN free_owners AS f ON f.name = e.owner
        JOIN {q}records AS r ON r.owner = e.owner AND r.task = e.task
        WHERE r.expires_at <= now_ms FOR UPDATE OF r SKIP LOCKED
    )
    DELETE FROM {q}records AS r USING free_records AS f WHERE r.owner = f.owner AND r.task = f.task;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$body$;

-- Lets a timer fire at `due`, unless it fires earlier. Notifies the takers if it has become the earliest of its queue.
CREATE FUNCTION {q}schedule_one(of_queue text, of_owner text, of_task text, due bigint) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    first bigint;
BEGIN
    SELECT t.due_at INTO first FROM {q}timers AS t WHERE t.queue = of_queue ORDER BY t.due_at LIMIT 1;
    INSERT INTO {q}timers AS t VALUES (of_queue, of_owner, of_task, due, nextval('{q}tokens'))
    ON CONFLICT (queue, owner, task) DO UPDATE SET due_at = least(t.due_at, excluded.due_at), token = excluded.token;
    IF first IS NULL OR due < first THEN
        PERFORM pg_notify('{c}timers', of_queue);
    END IF;
END
$body$;

-- Schedules timers.
CREATE FUNCTION {q}schedule(queues text[], owners text[], tasks text[], delays bigint[]) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
    -- A timer fires no later than asked, although the locks take time.
    began CONSTANT bigint := {q}clock();
BEGIN
    -- One order for all transactions, so that none waits for another that waits for it.
    PERFORM {q}schedule_one(g.queue, g.owner, g.task, began / 1000 + g.delay)
    FROM (SELECT * FROM unnest(queues, owners, tasks, delays) AS u(queue, owner, task, delay) ORDER BY 1, 2, 3) AS g;
    RETURN began;
END
$body$;

-- Moves each timer, or removes it if its delay is NULL, if its token is valid. Returns which tokens were valid.
CREATE FUNCTION {q}resolve(queues text[], owners text[], tasks text[], held bigint[], delays bigint[])
RETURNS TABLE (nth bigint, is_valid boolean, now_us bigint) LANGUAGE plpgsql AS $body$
DECLARE
    began CONSTANT bigint := {q}clock();
    g     record;
    due   bigint;
    first bigint;
BEGIN
    FOR g IN
        SELECT * FROM unnest(queues, owners, tasks, held, delays) WITH ORDINALITY AS u(queue, owner, task, token, delay, nth)
        ORDER BY 1, 2, 3
    LOOP
        now_us := {q}clock();
        IF g.delay IS NULL THEN
            DELETE FROM {q}timers AS t
            WHERE t.queue = g.queue AND t.owner = g.owner AND t.task = g.task AND t.token = g.token;
            is_valid := FOUND;
        ELSE
            due := began / 1000 + g.delay;
            SELECT t.due_at INTO first FROM {q}timers AS t WHERE t.queue = g.queue ORDER BY t.due_at LIMIT 1;
            UPDATE {q}timers AS t SET due_at = due, token = nextval('{q}tokens')
            WHERE t.queue = g.queue AND t.owner = g.owner AND t.task = g.task AND t.token = g.token;
            is_valid := FOUND;
            IF is_valid AND (first IS NULL OR due < first) THEN
                PERFORM pg_notify('{c}timers', g.queue);
            END IF;
        END IF;
        nth := g.nth;
        RETURN NEXT;
    END LOOP;
END
$body$;

-- Takes due timers, queue by queue, and hides them. The last row has no task: it states when the next timer of these queues is due.
CREATE FUNCTION {q}take_due(queues text[], most integer, hide_ms bigint)
RETURNS TABLE (queue text, owner text, task text, token bigint, next_due bigint, now_us bigint) LANGUAGE plpgsql AS $body$
#variable_conflict use_column
DECLARE
    asked  text;
    first  bigint;
    next   bigint;
    taken  bigint;
    place  integer := most;
    clock  CONSTANT bigint := {q}clock();
BEGIN
    FOREACH asked IN ARRAY queues LOOP
        IF place > 0 THEN
            RETURN QUERY
            WITH due AS MATERIALIZED (
                SELECT t.owner, t.task, t.due_at FROM {q}timers AS t
                WHERE t.queue = asked AND t.due_at <= clock / 1000
                ORDER BY t.due_at, t.owner, t.task LIMIT place FOR UPDATE SKIP LOCKED
            ), moved AS (
                UPDATE {q}timers AS t SET due_at = clock / 1000 + hide_ms, token = nextval('{q}tokens')
                FROM due WHERE t.queue = asked AND t.owner = due.owner AND t.task = due.task
                RETURNING t.owner, t.task, t.token, due.due_at
            )
            SELECT asked, m.owner, m.task, m.token, NULL::bigint, clock FROM moved AS m ORDER BY m.due_at, m.owner, m.task;
            GET DIAGNOSTICS taken = ROW_COUNT;
            place := place - taken;
        END IF;
        SELECT t.due_at INTO first FROM {q}timers AS t WHERE t.queue = asked ORDER BY t.due_at LIMIT 1;
        next := least(next, first);
    END LOOP;
    RETURN QUERY SELECT NULL::text, NULL::text, NULL::text, NULL::bigint, next, clock;
END
$body$;

-- Changes the parts of a record that this transaction has written.
CREATE FUNCTION {q}put_parts(of_owner text, of_task text, names text[], datas bytea[], max_parts integer) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    DELETE FROM {q}parts AS p USING unnest(names, datas) AS u(name, data)
    WHERE p.owner = of_owner AND p.task = of_task AND p.name = u.name AND u.data IS NULL;
    INSERT INTO {q}parts AS p SELECT of_owner, of_task, u.name, u.data FROM unnest(names, datas) AS u(name, data)
    WHERE u.data IS NOT NULL
    ON CONFLICT (owner, task, name) DO UPDATE SET data = excluded.data;
    IF (SELECT count(*) FROM {q}parts AS p WHERE p.owner = of_owner AND p.task = of_task) > max_parts THEN
        RAISE EXCEPTION USING ERRCODE = 'MT001', MESSAGE = 'too many parts';
    END IF;
END
$body$;

-- Writes records. Each writes as a whole or not at all, and has an outcome of its own:
--   'ok'         written; `new_version` and `new_expires_at` are those of the record now
--   'conflict'   `new_version` is the version of the record
--   'missing'    no such record
--   'full'       the owner has as many records as its quota allows
--   'exhausted'  the record is at the last version
--   'corrupt'    the stored version is none
-- The parts are those of the first record. If the record would have too many, the function raises MT001, and nothing is written.
CREATE FUNCTION {q}put(
    owners       text[],
    tasks        text[],
    expectations bigint[],              -- the version that the record must have; 0 for no record, NULL for any or none
    datas        bytea[],
    expiries     bigint[],              -- in how many milliseconds the record expires; 0 for never, -1 for as before
    quotas       bigint[],              -- NULL for none
    notices      boolean[],             -- whether to notify the watchers
    queues       text[],                -- the queue of a timer to schedule if the record is created; NULL for none
    delays       bigint[],              -- when this timer fires
    part_names   text[],                -- NULL for no change of parts
    part_datas   bytea[],               -- NULL to remove the part
    max_version  bigint,
    max_parts    integer
) RETURNS TABLE (nth bigint, outcome text, new_version bigint, new_expires_at bigint, now_us bigint) LANGUAGE plpgsql AS $body$
#variable_conflict use_column
DECLARE
    g          record;
    wanted     bigint;                  -- the version to replace; 0 or NULL for none
    stored     record;
    is_expired boolean;
    created    bigint;
    part_sizes jsonb;
    -- A timer fires no later than asked, although the create takes time.
    began      CONSTANT bigint := {q}clock();
BEGIN
    IF part_names IS NOT NULL THEN
        SELECT coalesce(jsonb_object_agg(u.name, octet_length(u.data)) FILTER (WHERE u.data IS NOT NULL), '{}')
        INTO part_sizes FROM unnest(part_names, part_datas) AS u(name, data);
    END IF;
    -- One order for all transactions, so that none waits for another that waits for it.
    FOR g IN
        SELECT * FROM unnest(owners, tasks, expectations, datas, expiries, quotas, notices, queues, delays)
        WITH ORDINALITY AS u(owner, task, expected, data, expiry, quota, notifies, queue, delay, nth)
        ORDER BY u.owner, u.task
    LOOP
        nth := g.nth;
        wanted := g.expected;
        outcome := NULL;
        WHILE outcome IS NULL LOOP
            now_us := {q}clock();
            IF wanted > 0 THEN
                UPDATE {q}records AS r SET
                    version = r.version + 1,
                    data = g.data,
                    expires_at = CASE g.expiry
                        WHEN -1 THEN r.expires_at WHEN 0 THEN NULL ELSE (now_us + g.expiry * 1000 + 999) / 1000 END,
                    parts = CASE WHEN part_names IS NULL THEN r.parts ELSE (r.parts - part_names) || part_sizes END
                WHERE r.owner = g.owner AND r.task = g.task AND r.version = wanted AND r.version < max_version
                    AND (r.expires_at IS NULL OR r.expires_at > now_us / 1000)
                RETURNING r.version, r.expires_at INTO new_version, new_expires_at;
                IF FOUND THEN
                    outcome := 'ok';
                    EXIT;
                END IF;
            END IF;

            SELECT r.version, r.expires_at <= now_us / 1000 IS TRUE AS is_expired INTO stored
            FROM {q}records AS r WHERE r.owner = g.owner AND r.task = g.task;
            is_expired := FOUND AND stored.is_expired;
            IF FOUND AND NOT is_expired THEN
                new_version := stored.version;
                IF stored.version NOT BETWEEN 1 AND max_version THEN
                    outcome := 'corrupt';
                ELSIF stored.version <> g.expected THEN
                    outcome := 'conflict';
                ELSIF stored.version = max_version THEN
                    outcome := 'exhausted';
                ELSE
                    -- A `put` replaces this version. Or the record came to the expected version after the UPDATE.
                    wanted := stored.version;
                END IF;
                CONTINUE;
            END IF;
            IF g.expected > 0 THEN
                outcome := 'missing';
                CONTINUE;
            END IF;
            IF g.quota = 0 THEN
                outcome := 'full';
                CONTINUE;
            END IF;

            IF is_expired THEN
                -- The owner is locked before the record, as everywhere.
                PERFORM FROM {q}owners AS o WHERE o.name = g.owner FOR UPDATE;
                DELETE FROM {q}records AS r
                WHERE r.owner = g.owner AND r.task = g.task AND r.expires_at <= now_us / 1000;
            END IF;
            INSERT INTO {q}owners AS o VALUES (g.owner, 1, now_us)
            ON CONFLICT (name) DO UPDATE SET records = o.records + 1, newest = greatest(o.newest + 1, now_us)
            WHERE g.quota IS NULL OR o.records < g.quota
            RETURNING o.newest INTO created;
            IF NOT FOUND THEN
                -- The conflict has locked the owner. Expired records do not count.
                UPDATE {q}owners AS o SET records = o.records + 1, newest = greatest(o.newest + 1, now_us)
                WHERE o.name = g.owner AND o.records < g.quota + (
                    SELECT count(*) FROM {q}records AS r WHERE r.owner = g.owner AND r.expires_at <= now_us / 1000)
                RETURNING o.newest INTO created;
                IF NOT FOUND THEN
                    outcome := 'full';
                    CONTINUE;
                END IF;
            END IF;
            new_version := 1;
            new_expires_at := CASE WHEN g.expiry > 0 THEN (now_us + g.expiry * 1000 + 999) / 1000 END;
            INSERT INTO {q}records VALUES (
                g.owner, g.task, 1, created, new_expires_at, coalesce(part_sizes, '{}'), g.data)
            ON CONFLICT (owner, task) DO NOTHING;
            IF NOT FOUND THEN
                -- Another transaction created the record before this one locked the owner.
                UPDATE {q}owners AS o SET records = o.records - 1 WHERE o.name = g.owner;
                wanted := NULL;
                CONTINUE;
            END IF;
            outcome := 'ok';
            IF g.queue IS NOT NULL THEN
                PERFORM {q}schedule_one(g.queue, g.owner, g.task, began / 1000 + g.delay);
            END IF;
        END LOOP;

        IF outcome = 'ok' THEN
            IF part_names IS NOT NULL THEN
                PERFORM {q}put_parts(g.owner, g.task, part_names, part_datas, max_parts);
            END IF;
            IF g.notifies THEN
                PERFORM pg_notify('{c}changes', coalesce(new_expires_at, 0) || ' ' || g.owner || ':' || g.task);
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- Whoever writes removes what has expired.
    IF EXISTS (SELECT FROM {q}records AS r WHERE r.expires_at <= {q}clock() / 1000) THEN
        PERFORM {q}purge(32);
    END IF;
END
$body$;

-- Removes a record. Returns whether it was live.
CREATE FUNCTION {q}remove(of_owner text, of_task text, OUT was_live boolean, OUT now_us bigint) LANGUAGE plpgsql AS $body$
DECLARE
    removed_at bigint;
BEGIN
    PERFORM FROM {q}owners AS o WHERE o.name = of_owner FOR UPDATE;
    DELETE FROM {q}records AS r WHERE r.owner = of_owner AND r.task = of_task RETURNING r.expires_at INTO removed_at;
    was_live := FOUND;
    now_us := {q}clock();
    IF was_live THEN
        was_live := removed_at IS NULL OR removed_at > now_us / 1000;
        PERFORM pg_notify('{c}changes', '- ' || of_owner || ':' || of_task);
    END IF;
END
$body$;
