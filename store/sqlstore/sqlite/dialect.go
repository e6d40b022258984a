package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	holdfast "github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// maxBytes is well below the 1 GB that SQLite takes in one row.
const maxBytes = 256 << 20

// dialect returns what SQLite has of its own.
func (c *config) dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Name:        "sqlite",
		Placeholder: sqlstore.QuestionNumber,
		Prepare:     true,
		OneWriter:   true,
		Blocks:      true,

		Insert: "INSERT INTO {table} AS t (id, revision, seen, expires, sweep, data)" +
			" VALUES ({id}, {revision}, {seen}, {expires}, {sweep}, {data})" +
			" ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, seen = excluded.seen, expires = excluded.expires," +
			" sweep = excluded.sweep, data = excluded.data WHERE t.expires <= {now}",
		// What became of a touch that changes nothing is asked separately: there is no round trip to save.
		Touch: "UPDATE {table} SET revision = {revision}, seen = {seen}, expires = {expires}, sweep = {sweep}" +
			" WHERE id = {id} AND revision = {prev} AND expires > {now}",
		Sweep:    "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE sweep <= {sweep} AND expires <= {now} ORDER BY sweep LIMIT {limit})",
		Clock:    "unixepoch() * 1000",
		Size:     "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
		SizeNote: "those of the whole file, without its log; removed rows leave free pages, which are used again",

		Schema: []string{
			"CREATE TABLE IF NOT EXISTS {table} (\n" +
				"  id BLOB NOT NULL PRIMARY KEY,\n" +
				"  revision INTEGER NOT NULL,\n" +
				"  seen INTEGER NOT NULL,\n" +
				"  expires INTEGER NOT NULL,\n" +
				"  sweep INTEGER NOT NULL,\n" +
				"  data BLOB NOT NULL\n" +
				")",
			"CREATE INDEX IF NOT EXISTS {table}_sweep ON {table} (sweep)",
			"CREATE TABLE IF NOT EXISTS {meta} (\n" +
				"  name TEXT NOT NULL PRIMARY KEY,\n" +
				"  value INTEGER NOT NULL,\n" +
				"  owner TEXT NOT NULL,\n" +
				"  until INTEGER NOT NULL\n" +
				")",
			"INSERT INTO {meta} (name, value, owner, until) VALUES ('schema', 1, '', 0), ('sweep', 0, '', 0) ON CONFLICT (name) DO NOTHING",
		},
		Columns: "SELECT name, type, pk = 1 AND (SELECT COUNT(*) FROM pragma_table_info({name}) WHERE pk > 0) = 1," +
			" \"notnull\" AND dflt_value IS NULL FROM pragma_table_info({name})",
		Types: map[string][]string{
			"id": {"blob"}, "revision": {"integer"}, "seen": {"integer"}, "expires": {"integer"}, "sweep": {"integer"}, "data": {"blob"},
		},
		Opened: func(_ context.Context, _ *sql.DB, _ string, d *holdfast.Description) error {
			d.MaxBytes = maxBytes
			d.Durable = "all that was acknowledged before a process ends; a power failure may undo the last seconds"
			if c.sync == "FULL" {
				d.Durable = "all that was acknowledged"
			}
			return nil
		},
		Classify: classify,
		Explain:  explain,
	}
}

func classify(err error) sqlstore.Verdict {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return sqlstore.Unavailable
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return sqlstore.Again
	case sqlite3.SQLITE_READONLY:
		return sqlstore.ReadOnly
	case sqlite3.SQLITE_TOOBIG:
		return sqlstore.TooLarge
	case sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return sqlstore.Denied
	case sqlite3.SQLITE_ERROR:
		return sqlstore.NoTable // the only one that the store's statements meet
	}
	return sqlstore.Unavailable
}

func explain(err error) string {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return ""
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_NOTADB:
		return "the file is not an SQLite database"
	case sqlite3.SQLITE_CORRUPT:
		return "the database is damaged; see PRAGMA integrity_check, and restore it"
	case sqlite3.SQLITE_FULL:
		return "the disk is full, or the database has reached its max_page_count"
	case sqlite3.SQLITE_READONLY:
		return "the file, its directory or its file system is read-only for this user"
	case sqlite3.SQLITE_CANTOPEN:
		return "the file cannot be opened; the user needs to read and write it and its directory"
	case sqlite3.SQLITE_IOERR:
		return fmt.Sprintf("input/output error (code %d); see the system's log", e.Code())
	}
	return fmt.Sprintf("%s (code %d)", sqlite.ErrorCodeString[e.Code()&0xff], e.Code())
}
