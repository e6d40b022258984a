package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"

	holdfast "github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// Errors of the server, by the codes of its manual's appendix A.
const (
	errReadOnly        = "25006"
	errSerialization   = "40001"
	errDeadlock        = "40P01"
	errLockNotHad      = "55P03"
	errDenied          = "42501"
	errNoTable         = "42P01"
	errNoSchema        = "3F000"
	errNoDatabase      = "3D000"
	errWrongPassword   = "28P01"
	errWrongUser       = "28000"
	errTooManyConns    = "53300"
	errDiskFull        = "53100"
	errOutOfMemory     = "53200"
	errProgramLimit    = "54000"
	errAdminShutdown   = "57P01"
	errCrashShutdown   = "57P02"
	errCannotConnect   = "57P03"
	errNoSuchStatement = "26000"
	errStatementExists = "42P05"
)

// maxBytes is well below the 1 GB that PostgreSQL takes in one value and in one message.
const maxBytes = 256 << 20

// dialect returns what PostgreSQL has of its own.
func (c *config) dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Name:        "postgres",
		Placeholder: sqlstore.Dollar,

		Insert: "INSERT INTO {table} AS t (id, revision, seen, expires, sweep, data)" +
			" VALUES ({id}, {revision}, {seen}, {expires}, {sweep}, {data})" +
			" ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, seen = excluded.seen, expires = excluded.expires," +
			" sweep = excluded.sweep, data = excluded.data WHERE t.expires <= {now}",
		// One row for a touch that was done, two for one that another writer was ahead of, none for an absent row.
		Touch: "WITH touched AS (UPDATE {table} SET revision = {revision}, seen = {seen}, expires = {expires}, sweep = {sweep}" +
			" WHERE id = {id} AND revision = {prev} AND expires > {now} RETURNING 1)" +
			" SELECT 1 FROM {table} WHERE id = {id} AND expires > {now}" +
			" UNION ALL SELECT 2 FROM {table} WHERE id = {id} AND expires > {now} AND NOT EXISTS (SELECT 1 FROM touched)",
		Touched: touched,
		Sweep: "DELETE FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM {table} WHERE sweep <= {sweep} AND expires <= {now}" +
			" ORDER BY sweep LIMIT {limit} FOR UPDATE SKIP LOCKED))",
		Clock:    "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
		Size:     "SELECT pg_total_relation_size(to_regclass({name}))",
		SizeNote: "with indexes and what vacuum has not reclaimed",

		Schema: c.schema(),
		Grants: "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user}\nGRANT SELECT, UPDATE ON {meta} TO {user}",
		Quote:  `"`,
		Columns: "SELECT a.attname, format_type(a.atttypid, a.atttypmod)," +
			" COALESCE((SELECT i.indkey::text = a.attnum::text FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary), false)," +
			" a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''" +
			" FROM pg_attribute a WHERE a.attrelid = to_regclass({name}) AND a.attnum > 0 AND NOT a.attisdropped",
		Types: map[string][]string{
			"id": {"bytea"}, "revision": {"bigint"}, "seen": {"bigint"}, "expires": {"bigint"}, "sweep": {"integer"}, "data": {"bytea"},
		},
		Opened:   c.opened,
		Classify: classify,
		Explain:  explain,
	}
}

// schema returns the statements that make the tables. The free space in each page is for new versions of its rows:
// an update of a row of this table touches no indexed column, as a rule, and then stays in the page.
func (c *config) schema() []string {
	unlogged := ""
	if c.unlogged {
		unlogged = "UNLOGGED "
	}
	return []string{
		"CREATE " + unlogged + "TABLE IF NOT EXISTS {table} (\n" +
			"  id BYTEA NOT NULL PRIMARY KEY,\n" +
			"  revision BIGINT NOT NULL,\n" +
			"  seen BIGINT NOT NULL,\n" +
			"  expires BIGINT NOT NULL,\n" +
			"  sweep INTEGER NOT NULL,\n" +
			"  data BYTEA NOT NULL\n" +
			") WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05)",
		"CREATE INDEX IF NOT EXISTS {table}_sweep ON {table} (sweep)",
		"CREATE TABLE IF NOT EXISTS {meta} (\n" +
			"  name TEXT NOT NULL PRIMARY KEY,\n" +
			"  value BIGINT NOT NULL,\n" +
			"  owner TEXT NOT NULL,\n" +
			"  until BIGINT NOT NULL\n" +
			")",
		"INSERT INTO {meta} (name, value, owner, until) VALUES ('schema', 1, '', 0), ('sweep', 0, '', 0) ON CONFLICT (name) DO NOTHING",
	}
}

// opened completes the description with what the table is.
func (c *config) opened(ctx context.Context, db *sql.DB, table string, d *holdfast.Description) error {
	var persistence string
	err := db.QueryRowContext(ctx, "SELECT relpersistence::text FROM pg_class WHERE oid = to_regclass($1)", table).Scan(&persistence)
	if err != nil {
		return err
	}
	switch unlogged := persistence == "u"; {
	case unlogged != c.unlogged && c.unloggedGiven:
		return sqlstore.Refuse("table %s: unlogged is %v, and the URL says otherwise; change the URL, or ALTER TABLE %s SET LOGGED or UNLOGGED", table, unlogged, table)
	case unlogged:
		d.Durable = "an orderly shutdown; a crash of the server empties the table (UNLOGGED), and replicas do not have it"
	default:
		d.Durable = "all that was acknowledged, unless fsync or synchronous_commit is off"
	}
	d.MaxBytes = maxBytes
	return nil
}

func touched(res sql.Result) (sqlstore.Touched, error) {
	n, err := res.RowsAffected()
	switch n {
	case 0:
		return sqlstore.TouchAbsent, err
	case 1:
		return sqlstore.TouchDone, err
	}
	return sqlstore.TouchLost, err
}

func classify(err error) sqlstore.Verdict {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		var op *net.OpError
		switch {
		case errors.As(err, &op) && op.Op == "dial":
			return sqlstore.Unavailable
		case errors.As(err, &op), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
			return sqlstore.Broken
		}
		return sqlstore.Unavailable
	}
	switch e.Code {
	case errSerialization, errDeadlock, errLockNotHad:
		return sqlstore.Again
	case errReadOnly:
		return sqlstore.ReadOnly
	case errAdminShutdown, errCrashShutdown, errCannotConnect:
		return sqlstore.Broken
	case errProgramLimit:
		return sqlstore.TooLarge
	case errWrongPassword, errWrongUser, errNoDatabase:
		return sqlstore.Refused
	case errDenied:
		return sqlstore.Denied
	case errNoTable, errNoSchema:
		return sqlstore.NoTable
	}
	return sqlstore.Unavailable
}

// explain says what an error means. Messages name tables and columns; values are in their details, which are left out.
func explain(err error) string {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return sqlstore.Unreachable(err, "postgres")
	}
	hint := ""
	switch e.Code {
	case errWrongPassword:
		hint = "wrong user or password"
	case errWrongUser:
		hint = "the user may not log in from here so; see the server's pg_hba.conf, and add tls=verify if it takes TLS only"
	case errNoDatabase:
		hint = "there is no such database; CREATE DATABASE it"
	case errTooManyConns:
		hint = "too many connections; lower max_conns= or raise max_connections"
	case errNoSuchStatement, errStatementExists:
		hint = "prepared statements get lost on the way, as with PgBouncer in transaction mode; add prepare=false"
	case errReadOnly:
		hint = "the server takes no writes"
	case errDiskFull, errOutOfMemory:
		hint = e.Message
	default:
		return fmt.Sprintf("%s (error %s)", e.Message, e.Code)
	}
	return fmt.Sprintf("%s (error %s)", hint, e.Code)
}
