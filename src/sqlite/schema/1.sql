-- Schema version 1.

-- The owners that have records. The triggers below keep the counts.
CREATE TABLE owners (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    records INTEGER NOT NULL,           -- how many rows of `records` the owner has, expired or not
    newest  INTEGER NOT NULL            -- the latest creation time of its records, in microseconds since 1970
) STRICT;

CREATE TABLE records (
    id         INTEGER PRIMARY KEY,
    owner      INTEGER NOT NULL,        -- owners.id
    task       TEXT    NOT NULL,
    version    INTEGER NOT NULL,        -- 1, 2, 3, ...
    created_at INTEGER NOT NULL,        -- microseconds since 1970; no two records of an owner share it
    expires_at INTEGER,                 -- milliseconds since 1970; NULL for never
    parts      TEXT    NOT NULL,        -- names and sizes of the parts: 'checkpoint=5000 output=123'
    data       BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX records_by_task ON records (owner, task);
CREATE UNIQUE INDEX records_by_creation ON records (owner, created_at);
-- Counts the expired records of an owner without reading the rows.
CREATE INDEX records_by_expiry ON records (expires_at, owner) WHERE expires_at IS NOT NULL;

-- Large fields of records. An update of a record does not rewrite them.
CREATE TABLE parts (
    record INTEGER NOT NULL,            -- records.id
    name   TEXT    NOT NULL,
    data   BLOB    NOT NULL,
    UNIQUE (record, name)
) STRICT;

CREATE TRIGGER record_inserted AFTER INSERT ON records BEGIN
    UPDATE owners SET records = records + 1, newest = max(newest, NEW.created_at) WHERE id = NEW.owner;
END;

CREATE TRIGGER record_deleted AFTER DELETE ON records BEGIN
    DELETE FROM parts WHERE record = OLD.id;
    UPDATE owners SET records = records - 1 WHERE id = OLD.owner;
    DELETE FROM owners WHERE id = OLD.owner AND records = 0;
END;

-- When to look at a task. A timer may exist without a record.
CREATE TABLE timers (
    queue  TEXT    NOT NULL,
    owner  TEXT    NOT NULL,
    task   TEXT    NOT NULL,
    due_at INTEGER NOT NULL,            -- milliseconds since 1970
    token  INTEGER NOT NULL,            -- random, and new after each write of the timer
    PRIMARY KEY (queue, owner, task)
) STRICT, WITHOUT ROWID;

CREATE INDEX timers_by_due ON timers (queue, due_at, owner, task);
