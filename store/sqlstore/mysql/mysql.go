// Package mysql keeps sessions in a table of MySQL or MariaDB.
//
//	store, err := mysql.Open(ctx, "mysql://app:secret@db1,db2/shop?table=holdfast_sessions")
//
// The URL may name several hosts: the nodes of a Galera cluster, or a primary and its replicas; the store uses the
// first that takes writes. With ?engine=memory the table is in the server's memory. Package sqlstore says how a store in
// a database works, and docs/stores/mysql.md has the options, statements, rights and failures.
package mysql

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/holdfast-sessions/holdfast/internal/sqlurl"
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// A row of a MEMORY table has at most 65,535 bytes, and is always as long as the longest may be.
const (
	defaultMaxBytes = 4000
	maxMaxBytes     = 65000
)

// config is what a URL says.
type config struct {
	*sqlurl.Config
	url           string // without password and options that matter to nobody else
	memory        bool
	engineGiven   bool
	maxBytes      int // of a record in a MEMORY table
	maxBytesGiven bool
}

const wantURL = "want mysql://user:password@host[:port][,host...]/database[?option=value&...]"

func parse(raw string) (*config, error) {
	u, err := storeurl.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, wantURL)
	}
	if u.Scheme != "mysql" && u.Scheme != "mariadb" {
		return nil, errors.New(wantURL)
	}
	c := &config{maxBytes: defaultMaxBytes}
	c.Config, err = sqlurl.Server(u, "3306", map[string]func(string) error{
		"engine": func(v string) error {
			if v != "innodb" && v != "memory" {
				return errors.New("want innodb or memory")
			}
			c.memory, c.engineGiven = v == "memory", true
			return nil
		},
		"max_bytes": func(v string) error {
			c.maxBytesGiven = true
			return sqlurl.Int(&c.maxBytes, 256, maxMaxBytes)(v)
		},
	})
	if err != nil {
		return nil, err
	}
	if c.maxBytesGiven && !c.memory {
		return nil, errors.New("option max_bytes is for engine=memory")
	}
	c.url = sqlurl.Shown(u)
	return c, nil
}

// Open connects to the first of the URL's hosts that takes writes, makes the table if it is missing and the user may,
// and checks that it is what it should be and that the user has the rights the store needs:
//
//	mysql://user:password@host[:port][,host...]/database[?option=value&...]
//
// Its errors say what to do, and never show the password. Where no server can be reached they match
// driver.ErrUnavailable. Of settings, only Logger counts.
func Open(ctx context.Context, url string, settings ...sqlstore.Config) (*sqlstore.Store, error) {
	c, err := parse(url)
	if err != nil {
		return nil, fmt.Errorf("mysql store: %w", err)
	}
	s, err := sqlstore.Open(ctx, c.dialect(), c.hosts(), c.settings(settings))
	if err != nil {
		return nil, fmt.Errorf("mysql store: %w", err)
	}
	return s, nil
}

// Migrate makes what is missing of the tables, as a user who may.
func Migrate(ctx context.Context, url string) error {
	c, err := parse(url)
	if err == nil {
		err = sqlstore.Migrate(ctx, c.dialect(), c.hosts(), c.settings(nil))
	}
	if err != nil {
		return fmt.Errorf("mysql store: %w", err)
	}
	return nil
}

// Schema returns the statements that Migrate runs, and the rights that the user of the URL needs.
func Schema(url string) (string, error) {
	c, err := parse(url)
	if err != nil {
		return "", fmt.Errorf("mysql store: %w", err)
	}
	return sqlstore.Schema(c.dialect(), c.Name, c.User), nil
}

func (c *config) settings(given []sqlstore.Config) sqlstore.Config {
	var s sqlstore.Config
	if len(given) > 0 {
		s.Logger = given[0].Logger
	}
	s.Table, s.SweepEvery, s.MaxConns, s.URL, s.User = c.Name, c.Sweep, c.MaxConns, c.url, c.User
	return s
}

// hosts returns the connector.
func (c *config) hosts() *sqlstore.Hosts {
	var hosts []sqlstore.Host
	for _, addr := range c.Addrs {
		hosts = append(hosts, sqlstore.Host{Name: addr, Connect: func(ctx context.Context, dial sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			return c.connect(ctx, dial, addr)
		}})
	}
	return sqlstore.NewHosts(c.ConnectTimeout, hosts...)
}

// connect makes a connection and readies its session.
func (c *config) connect(ctx context.Context, dial sqlstore.Dial, addr string) (_ driver.Conn, state sqlstore.HostState, err error) {
	password, err := c.Password()
	if err != nil {
		return nil, state, err
	}
	m := mysql.NewConfig()
	m.User, m.Passwd, m.DBName = c.User, password, c.Database
	m.Net, m.Addr, m.TLS = "tcp", addr, c.TLSFor(addr)
	m.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) { return dial(ctx, network, addr) }
	m.InterpolateParams = !c.Prepare
	m.MaxAllowedPacket = 1 << 30 // the store knows the limit
	m.ConnectionAttributes = "program_name:holdfast"
	m.Logger = log.New(io.Discard, "", 0) // what it logs it returns too
	connector, err := mysql.NewConnector(m)
	if err != nil {
		return nil, state, err
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, state, err
	}
	state.Writable, err = ready(ctx, conn)
	if err != nil {
		_ = conn.Close() // not used
		return nil, state, err
	}
	return conn, state, nil
}

// ready asks the server what it is and sets up the session. A server that is read-only is so for this session too,
// also if the user may write to it all the same: a write there would be lost, or break the replication.
func ready(ctx context.Context, conn driver.Conn) (writable bool, err error) {
	settings, err := variables(ctx, conn, "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'innodb_read_only', 'wsrep_on', 'wsrep_reject_queries')")
	if err != nil {
		return false, err
	}
	session := "SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = 2, lock_wait_timeout = 5"
	if settings["wsrep_on"] == "ON" {
		status, err := variables(ctx, conn, "SHOW GLOBAL STATUS LIKE 'wsrep_ready'")
		if err != nil {
			return false, err
		}
		if reject := settings["wsrep_reject_queries"]; status["wsrep_ready"] != "ON" || reject != "" && reject != "NONE" {
			return false, &mysql.MySQLError{Number: errNotReady, Message: "WSREP has not yet prepared node for application use"}
		}
		// A read waits until the node has applied what was committed before it anywhere in the cluster.
		session += ", wsrep_sync_wait = 1"
	}
	// With the default, REPEATABLE READ, a statement that finds no row locks the gap where it would be.
	access := ""
	writable = settings["read_only"] != "ON" && settings["innodb_read_only"] != "ON"
	if !writable {
		access = ", READ ONLY"
	}
	for _, statement := range []string{session, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED" + access} {
		if _, err := conn.(driver.ExecerContext).ExecContext(ctx, statement, nil); err != nil {
			return false, err
		}
	}
	return writable, nil
}

// variables returns the rows of a SHOW statement.
func variables(ctx context.Context, conn driver.Conn, query string) (map[string]string, error) {
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, query, nil)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := make(map[string]string)
	row := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(row); err {
		case nil:
			found[strings.ToLower(text(row[0]))] = text(row[1])
		case io.EOF:
			return found, nil
		default:
			return nil, err
		}
	}
}

func text(v driver.Value) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return fmt.Sprint(v)
}
