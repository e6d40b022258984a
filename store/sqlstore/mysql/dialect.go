package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-sql-driver/mysql"

	holdfast "github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// Errors of the server, by their numbers in its reference manual; those above 1900 are MariaDB's.
const (
	errAccessDeniedDB   = 1044
	errAccessDenied     = 1045
	errUnknownDB        = 1049
	errNotReady         = 1047 // Galera: the node is not part of the cluster, or not yet
	errTableFull        = 1114
	errRowTooLarge      = 1118
	errTableDenied      = 1142
	errColumnDenied     = 1143
	errNoTable          = 1146
	errPacketTooLarge   = 1153
	errLockTimeout      = 1205
	errDeadlock         = 1213 // also what Galera says to who loses the certification
	errNeedPrivilege    = 1227
	errReadOnlyOption   = 1290 // --read-only
	errDataTooLong      = 1406
	errReadOnlySession  = 1792
	errReadOnlyMode     = 1836
	errSecureTransport  = 3159
	errTooManyConns     = 1040
	errUserConns        = 1203
	errTooManyPrepared  = 1461
	errShutdown         = 1053
	errQueryInterrupted = 1317
)

// dialect returns what MySQL and MariaDB have of their own.
func (c *config) dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Name:        "mysql",
		Placeholder: sqlstore.Question,
		Repeats:     true,
		Prepare:     c.Prepare,

		// Assignments take effect from left to right, so expires, which the conditions look at, comes last. The statement
		// affects 1 row that it inserts, 2 that it updates, and 0 that it leaves as it is; with the flag CLIENT_FOUND_ROWS
		// that would be 1 as well, so the flag is off.
		Insert: "INSERT INTO {table} (id, revision, seen, expires, sweep, data)" +
			" VALUES ({id}, {revision}, {seen}, {expires}, {sweep}, {data})" +
			" ON DUPLICATE KEY UPDATE revision = IF(expires <= {now}, VALUES(revision), revision)," +
			" seen = IF(expires <= {now}, VALUES(seen), seen), sweep = IF(expires <= {now}, VALUES(sweep), sweep)," +
			" data = IF(expires <= {now}, VALUES(data), data), expires = IF(expires <= {now}, VALUES(expires), expires)",
		// LAST_INSERT_ID is evaluated only when the row is there and has another revision, and then its argument comes
		// back with the answer: a lost race and an absent row are told apart by one statement.
		Touch: "UPDATE {table} SET revision = {revision}, seen = {seen}, expires = {expires}, sweep = {sweep}" +
			" WHERE id = {id} AND expires > {now} AND (revision = {prev} OR LAST_INSERT_ID(LENGTH(id)) = 0)",
		Touched:    touched,
		SweepBatch: sweepBatch,
		Clock:      "UNIX_TIMESTAMP() * 1000",
		Size: "SELECT CAST(COALESCE(SUM(data_length + index_length), 0) AS SIGNED) FROM information_schema.tables" +
			" WHERE table_schema = DATABASE() AND table_name = {name}",
		SizeNote: "what the server estimates",

		Schema: c.schema(),
		Grants: "GRANT SELECT, INSERT, UPDATE, DELETE ON " + sqlstore.QuoteName(c.Database, "`") + ".{table} TO {user}\n" +
			"GRANT SELECT, UPDATE ON " + sqlstore.QuoteName(c.Database, "`") + ".{meta} TO {user}",
		Quote: "`",
		Columns: "SELECT column_name, column_type, column_key = 'PRI' AND (SELECT COUNT(*) FROM information_schema.columns k" +
			" WHERE k.table_schema = DATABASE() AND k.table_name = c.table_name AND k.column_key = 'PRI') = 1," +
			" is_nullable = 'NO' AND column_default IS NULL AND extra = '' FROM information_schema.columns c" +
			" WHERE table_schema = DATABASE() AND table_name = {name}",
		Types: map[string][]string{
			"id": {"binary(32)"}, "revision": {"bigint", "bigint("}, "seen": {"bigint", "bigint("}, "expires": {"bigint", "bigint("},
			"sweep": {"int", "int("}, "data": {"mediumblob", "longblob", "varbinary("},
		},
		Opened:   c.opened,
		Classify: classify,
		Explain:  c.explain,
	}
}

// schema returns the statements that make the tables. The rows of a MEMORY table have one width, that of the largest.
func (c *config) schema() []string {
	data, engine := "MEDIUMBLOB", "InnoDB"
	if c.memory {
		data, engine = fmt.Sprintf("VARBINARY(%d)", c.maxBytes), "MEMORY"
	}
	return []string{
		"CREATE TABLE IF NOT EXISTS {table} (\n" +
			"  id BINARY(32) NOT NULL PRIMARY KEY,\n" +
			"  revision BIGINT NOT NULL,\n" +
			"  seen BIGINT NOT NULL,\n" +
			"  expires BIGINT NOT NULL,\n" +
			"  sweep INT NOT NULL,\n" +
			"  data " + data + " NOT NULL,\n" +
			"  KEY sweep (sweep) USING BTREE\n" +
			") ENGINE=" + engine,
		"CREATE TABLE IF NOT EXISTS {meta} (\n" +
			"  name VARBINARY(16) NOT NULL PRIMARY KEY,\n" +
			"  value BIGINT NOT NULL,\n" +
			"  owner VARBINARY(64) NOT NULL,\n" +
			"  until BIGINT NOT NULL\n" +
			") ENGINE=InnoDB",
		"INSERT IGNORE INTO {meta} (name, value, owner, until) VALUES ('schema', 1, '', 0), ('sweep', 0, '', 0)",
	}
}

// opened completes the description with what the table is, whatever the URL says.
func (c *config) opened(ctx context.Context, db *sql.DB, table string, d *holdfast.Description) error {
	var engine, data string
	var width, packet int64
	err := db.QueryRowContext(ctx, "SELECT t.engine, c.data_type, c.character_maximum_length, @@global.max_allowed_packet"+
		" FROM information_schema.tables t JOIN information_schema.columns c USING (table_schema, table_name)"+
		" WHERE t.table_schema = DATABASE() AND t.table_name = ? AND c.column_name = 'data'", table).Scan(&engine, &data, &width, &packet)
	if err != nil {
		return err
	}
	switch memory := strings.EqualFold(engine, "MEMORY"); {
	case memory != c.memory && c.engineGiven:
		return sqlstore.Refuse("table %s is ENGINE=%s, and the URL says otherwise; change engine= or the table", table, engine)
	case memory && c.maxBytesGiven && int64(c.maxBytes) != width:
		return sqlstore.Refuse("column data of table %s is VARBINARY(%d), and the URL says max_bytes=%d; change one of them", table, width, c.maxBytes)
	case memory:
		d.Durable = "nothing: a restart of the server empties the table (ENGINE=MEMORY)"
	case strings.EqualFold(engine, "InnoDB"):
		d.Durable = "all that was acknowledged, unless innodb_flush_log_at_trx_commit is not 1 and the power fails"
	default:
		return sqlstore.Refuse("table %s is ENGINE=%s; want InnoDB or MEMORY", table, engine)
	}
	packet -= packetOverhead
	if !c.Prepare {
		packet /= 2 // a statement that holds its arguments writes some bytes as two
	}
	d.MaxBytes = int(min(width, packet))
	return nil
}

// packetOverhead is more than a statement with a record has beside the record.
const packetOverhead = 4096

func touched(res sql.Result) (sqlstore.Touched, error) {
	n, err := res.RowsAffected()
	if err != nil || n > 0 {
		return sqlstore.TouchDone, err
	}
	lost, err := res.LastInsertId()
	if lost > 0 {
		return sqlstore.TouchLost, err
	}
	return sqlstore.TouchAbsent, err
}

// sweepBatch looks for expired rows by the index without locking them, and then removes them by their primary keys, in
// order. Removing them by the index would lock the index before the row, and a request that writes an expired row
// locks them the other way round: a deadlock.
func sweepBatch(ctx context.Context, db *sql.DB, table string, sweep, now int64, limit int) (removed int, more bool, err error) {
	// Numbers and hexadecimal digits are written out: prepared, the statements would be so for this one use.
	rows, err := db.QueryContext(ctx, fmt.Sprintf("SELECT id FROM %s WHERE sweep <= %d AND expires <= %d ORDER BY sweep LIMIT %d", table, sweep, now, limit))
	if err != nil {
		return 0, false, err
	}
	defer rows.Close()
	var list strings.Builder
	found := 0
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return 0, false, err
		}
		if found++; found > 1 {
			list.WriteByte(',')
		}
		list.WriteString("x'" + hex.EncodeToString(id) + "'")
	}
	if err := rows.Err(); err != nil || found == 0 {
		return 0, false, err
	}
	res, err := db.ExecContext(ctx, fmt.Sprintf("DELETE t FROM %s t FORCE INDEX (PRIMARY) WHERE t.id IN (%s) AND t.sweep <= %d AND t.expires <= %d",
		table, list.String(), sweep, now))
	if err != nil {
		return 0, false, err
	}
	n, err := res.RowsAffected()
	return int(n), found == limit, err
}

func classify(err error) sqlstore.Verdict {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		if errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return sqlstore.Broken
		}
		if errors.Is(err, mysql.ErrPktTooLarge) {
			return sqlstore.TooLarge
		}
		return sqlstore.Unavailable
	}
	switch e.Number {
	case errDeadlock, errLockTimeout:
		return sqlstore.Again
	case errReadOnlyOption, errReadOnlySession, errReadOnlyMode:
		return sqlstore.ReadOnly
	case errNotReady:
		return sqlstore.Elsewhere
	case errShutdown:
		return sqlstore.Broken
	case errRowTooLarge, errPacketTooLarge, errDataTooLong:
		return sqlstore.TooLarge
	case errAccessDenied, errAccessDeniedDB, errUnknownDB, errSecureTransport:
		return sqlstore.Refused
	case errTableDenied, errColumnDenied, errNeedPrivilege:
		return sqlstore.Denied
	case errNoTable:
		return sqlstore.NoTable
	}
	return sqlstore.Unavailable
}

// explain says what an error means, without values that the server quotes.
func (c *config) explain(err error) string {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		return sqlstore.Unreachable(err, "mysqld or mariadbd")
	}
	switch e.Number {
	case errTableFull:
		return "the table is full (error 1114): a MEMORY table holds max_heap_table_size bytes, as it was when the table was made; raise it and run ALTER TABLE ... ENGINE=MEMORY, or free disk space"
	case errAccessDenied:
		if c.TLS == nil { // MariaDB says no more to a user who has to use TLS
			return "wrong user or password (error 1045), or the user may not connect from this host, or only by TLS: then add tls=verify"
		}
		return "wrong user or password (error 1045), or the user may not connect from this host"
	case errAccessDeniedDB:
		return "the user may not use this database (error 1044)"
	case errUnknownDB:
		return "there is no such database (error 1049); CREATE DATABASE it"
	case errNotReady:
		return "this node is not part of the Galera cluster at present (error 1047)"
	case errTooManyConns, errUserConns:
		return fmt.Sprintf("too many connections (error %d); lower max_conns= or raise max_connections", e.Number)
	case errTooManyPrepared:
		return "too many prepared statements (error 1461); raise max_prepared_stmt_count, or add prepare=false"
	case errSecureTransport:
		return "the server takes TLS connections only (error 3159); add tls=verify, and ca_file= if its CA is your own"
	case errReadOnlyOption, errReadOnlySession, errReadOnlyMode:
		return fmt.Sprintf("the server takes no writes (error %d)", e.Number)
	}
	message, _, _ := strings.Cut(e.Message, " near '")      // quotes the statement
	message, _, _ = strings.Cut(message, "Duplicate entry") // quotes an ID
	return fmt.Sprintf("%s (error %d)", message, e.Number)
}
