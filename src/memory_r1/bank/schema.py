"""The tables of a bank file, as numbered migrations: to change the schema, append one, never edit one."""

APPLICATION_ID = 0x4D52_3142  # "MR1B" in the file's header: tells a bank from any other SQLite file

_FIRST = (
    """
    CREATE TABLE operations (                -- the log, append-only; everything else about entries follows from it
        seq        INTEGER PRIMARY KEY,
        scope      TEXT NOT NULL,
        kind       TEXT NOT NULL CHECK (kind IN ('ADD', 'UPDATE', 'DELETE', 'NOOP')),
        entry_id   TEXT,
        version    INTEGER,
        text       TEXT,
        speaker    TEXT,
        said_at    TEXT,                     -- ISO, without a zone
        turn_ids   TEXT NOT NULL,            -- JSON list
        decided_by TEXT NOT NULL,
        at         TEXT NOT NULL             -- ISO, UTC, microseconds
    )
    """,
    "CREATE INDEX operations_of_scope ON operations (scope)",
    """
    CREATE TRIGGER operations_are_never_changed BEFORE UPDATE ON operations
    BEGIN SELECT RAISE(ABORT, 'the operations log is append-only'); END
    """,
    """
    CREATE TRIGGER operations_are_never_deleted BEFORE DELETE ON operations
    BEGIN SELECT RAISE(ABORT, 'the operations log is append-only'); END
    """,
    """
    CREATE TABLE entries (                   -- every version; the rest of it stands in the line that opened it
        id         TEXT NOT NULL,
        version    INTEGER NOT NULL,
        scope      TEXT NOT NULL,
        speaker    TEXT,
        text       TEXT NOT NULL,
        valid_from TEXT NOT NULL,
        valid_to   TEXT,
        opened     INTEGER NOT NULL REFERENCES operations (seq),
        closed     INTEGER REFERENCES operations (seq),
        PRIMARY KEY (id, version)
    )
    """,
    "CREATE UNIQUE INDEX one_live_version ON entries (id) WHERE valid_to IS NULL",
    """
    CREATE UNIQUE INDEX live_texts ON entries (scope, speaker IS NULL, ifnull(speaker, ''), text)
    WHERE valid_to IS NULL                   -- NULLs are all different to SQLite: no speaker must equal no speaker
    """,
    """
    CREATE TABLE vectors (
        seq    INTEGER PRIMARY KEY REFERENCES operations (seq),
        vector BLOB NOT NULL                 -- little-endian float32, unit length
    )
    """,
    """
    CREATE TABLE embedder (                  -- one row: who made the vectors
        only_one  INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_one = 1),
        name      TEXT NOT NULL,
        dimension INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE turns (
        number      INTEGER PRIMARY KEY,
        scope       TEXT NOT NULL,
        id          TEXT NOT NULL,
        dialogue_id TEXT,
        speaker     TEXT NOT NULL,
        text        TEXT NOT NULL,
        at          TEXT,                    -- ISO, without a zone
        done_at     TEXT,                    -- ISO, UTC; NULL while pending
        UNIQUE (scope, id)
    )
    """,
    "CREATE INDEX pending_turns ON turns (scope, number) WHERE done_at IS NULL",
)

_GUARD_CHANGES, GUARD_DELETIONS = _FIRST[2], _FIRST[3]

_SECOND = (
    "ALTER TABLE operations ADD COLUMN batch INTEGER NOT NULL DEFAULT 0",  # the first line of the batch it came in
    "ALTER TABLE operations ADD COLUMN undoes INTEGER",                    # the batch that this line undoes
    "DROP TRIGGER operations_are_never_changed",
    # until now the lines of a batch were those of one time: no two batches shared theirs
    """
    UPDATE operations SET batch = batches.first
    FROM (SELECT seq, min(seq) OVER (PARTITION BY at) AS first FROM operations) AS batches
    WHERE batches.seq = operations.seq
    """,
    _GUARD_CHANGES,
    """
    CREATE TABLE resets (                    -- events that no log line tells: who follows the log reads it anew
        seq   INTEGER PRIMARY KEY,           -- numbered with the operations, so that no number is given out twice
        cause TEXT NOT NULL CHECK (cause IN ('scope deleted', 're-embedded')),
        at    TEXT NOT NULL                  -- ISO, UTC, microseconds
    )
    """,
    """
    CREATE TABLE next_vectors (              -- what re-embedding has made so far; takes the place of vectors when whole
        seq    INTEGER PRIMARY KEY,
        vector BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE next_embedder (             -- one row while the bank is being re-embedded: who makes them
        only_one  INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_one = 1),
        name      TEXT NOT NULL,
        dimension INTEGER NOT NULL
    )
    """,
)  # fmt: skip

MIGRATIONS = (_FIRST, _SECOND)
"""The statements of migration N stand at N - 1; `PRAGMA user_version` of a file is the last one it has seen."""
