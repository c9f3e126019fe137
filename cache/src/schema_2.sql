-- Format 2 of kiln.db: what was built, and why steps ran. Added to the tables of format 1.

-- project: hash of where Dockerfile and context are; process: the folder in tmp/ of the process that builds, '' once it
-- has ended; ended_ms: NULL until it has; document: JSON, the command line's
CREATE TABLE builds (
    id          TEXT PRIMARY KEY,
    project     BLOB NOT NULL,
    process     TEXT NOT NULL,
    started_ms  INTEGER NOT NULL,
    ended_ms    INTEGER,
    document    TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX builds_by_time ON builds (started_ms);
CREATE INDEX builds_by_project ON builds (project, started_ms);

-- The key with which values that may be secret are digested before they are kept; one row.
CREATE TABLE digest_key (
    key         BLOB NOT NULL
);
INSERT INTO digest_key VALUES (randomblob(32));

-- Layers of steps that failed; size: bytes of their files; document: JSON, the command line's
CREATE TABLE failures (
    layer       TEXT PRIMARY KEY,
    created     INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    document    TEXT NOT NULL
) WITHOUT ROWID;

-- Keys that answered until their record was pruned; time: when. The oldest go.
CREATE TABLE pruned (
    key         BLOB PRIMARY KEY,
    time        INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX pruned_by_time ON pruned (time);

-- Steps that used a cache mount, the last few of them; dir as in mounts
CREATE TABLE mount_users (
    dir         TEXT NOT NULL,
    step        TEXT NOT NULL,
    last_used   INTEGER NOT NULL,
    PRIMARY KEY (dir, step)
) WITHOUT ROWID;

-- What a cache mount came to on disk when somebody looked
CREATE TABLE mount_sizes (
    dir         TEXT PRIMARY KEY,
    bytes       INTEGER NOT NULL,
    measured    INTEGER NOT NULL
) WITHOUT ROWID;

-- The automatic garbage collection; one row. checked: when quotas were last looked at; aged: when age was;
-- distrusted: since when the clock is not believed
CREATE TABLE gc (
    checked     INTEGER NOT NULL,
    aged        INTEGER NOT NULL,
    distrusted  INTEGER NOT NULL
);
INSERT INTO gc VALUES (0, 0, 0);
