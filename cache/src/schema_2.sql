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
