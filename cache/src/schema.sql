-- Format 1 of kiln.db. Times: *_ms milliseconds, others seconds since 1970.
-- boot: the boot in which the files were written and have not been synced since; NULL once they were.
--       Rows of another boot are dropped: a power cut may have taken their data.
CREATE TABLE layers (
    id          TEXT PRIMARY KEY,
    content     BLOB NOT NULL,
    size        INTEGER NOT NULL,
    entries     INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    last_used   INTEGER NOT NULL,
    boot        TEXT
) WITHOUT ROWID;
CREATE INDEX layers_by_content ON layers (content);

CREATE TABLE blobs (
    digest      TEXT PRIMARY KEY,
    size        INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    last_used   INTEGER NOT NULL,
    boot        TEXT
) WITHOUT ROWID;

-- layers: the whole chain, bottom to top, separated by spaces; parts: JSON [[name, value], ...]
CREATE TABLE records (
    id          INTEGER PRIMARY KEY,
    definition  BLOB NOT NULL,
    content     BLOB,
    layers      TEXT NOT NULL,
    own         TEXT,
    result      BLOB NOT NULL,
    description TEXT NOT NULL,
    parts       TEXT NOT NULL,
    created     INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    last_used   INTEGER NOT NULL
);
CREATE INDEX records_by_description ON records (description);
CREATE INDEX records_by_own ON records (own);

-- Which record answers under a key; definition and content keys share one space, they cannot collide.
CREATE TABLE keys (
    key         BLOB PRIMARY KEY,
    record      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_by_record ON keys (record);

-- process: the folder in tmp/ whose lock the holder has; kind: 'layer' or 'blob'
CREATE TABLE leases (
    process     TEXT NOT NULL,
    lease       INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    name        TEXT NOT NULL,
    PRIMARY KEY (process, lease, kind, name)
) WITHOUT ROWID;
CREATE INDEX leases_by_name ON leases (kind, name);

CREATE TABLE resolved (
    reference   TEXT NOT NULL,
    platform    TEXT NOT NULL,
    digest      TEXT NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (reference, platform)
) WITHOUT ROWID;

CREATE TABLE layer_blobs (
    layer       TEXT NOT NULL,
    compression TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    diff_id     TEXT NOT NULL,
    media_type  TEXT NOT NULL,
    PRIMARY KEY (layer, compression)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs (digest);

CREATE TABLE frames (
    key         BLOB PRIMARY KEY,
    blob        TEXT NOT NULL,
    offset      INTEGER NOT NULL,
    length      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX frames_by_blob ON frames (blob);

-- dir: its folder in mounts/; replaced mounts (cleared while in use) have no id any more
CREATE TABLE mounts (
    dir         TEXT PRIMARY KEY,
    id          TEXT NOT NULL,
    created     INTEGER NOT NULL,
    last_used   INTEGER NOT NULL
) WITHOUT ROWID;
