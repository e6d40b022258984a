// Package postgres keeps sessions in a table of PostgreSQL.
//
//	store, err := postgres.Open(ctx, "postgres://app:secret@db1,db2/shop?table=holdfast_sessions")
//
// The URL may name several hosts, a primary and its standbys; the store uses the first that takes writes. With
// ?unlogged=true the table is not written to the log. Package sqlstore says how a store in a database works, and
// docs/stores/postgres.md has the options, statements, rights and failures.
package postgres

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/holdfast-sessions/holdfast/internal/sqlurl"
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// config is what a URL says.
type config struct {
	*sqlurl.Config
	url           string // without password and options that matter to nobody else
	unlogged      bool
	unloggedGiven bool
}

const wantURL = "want postgres://user:password@host[:port][,host...]/database[?option=value&...]"

func parse(raw string) (*config, error) {
	u, err := storeurl.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, wantURL)
	}
	if u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New(wantURL)
	}
	c := &config{}
	c.Config, err = sqlurl.Server(u, "5432", map[string]func(string) error{
		"unlogged": func(v string) error {
			c.unloggedGiven = true
			return sqlurl.Bool(&c.unlogged)(v)
		},
	})
	if err != nil {
		return nil, err
	}
	c.url = sqlurl.Shown(u)
	return c, nil
}

// Open connects to the first of the URL's hosts that takes writes, makes the table if it is missing and the user may,
// and checks that it is what it should be and that the user has the rights the store needs:
//
//	postgres://user:password@host[:port][,host...]/database[?option=value&...]
//
// Its errors say what to do, and never show the password. Where no server can be reached they match
// driver.ErrUnavailable. Of settings, only Logger counts. The environment (PGHOST and so on) does not.
func Open(ctx context.Context, url string, settings ...sqlstore.Config) (*sqlstore.Store, error) {
	c, err := parse(url)
	if err != nil {
		return nil, fmt.Errorf("postgres store: %w", err)
	}
	hosts, err := c.hosts()
	if err != nil {
		return nil, fmt.Errorf("postgres store: %w", err)
	}
	s, err := sqlstore.Open(ctx, c.dialect(), hosts, c.settings(settings))
	if err != nil {
		return nil, fmt.Errorf("postgres store: %w", err)
	}
	return s, nil
}

// Migrate makes what is missing of the tables, as a user who may.
func Migrate(ctx context.Context, url string) error {
	c, err := parse(url)
	if err != nil {
		return fmt.Errorf("postgres store: %w", err)
	}
	hosts, err := c.hosts()
	if err == nil {
		err = sqlstore.Migrate(ctx, c.dialect(), hosts, c.settings(nil))
	}
	if err != nil {
		return fmt.Errorf("postgres store: %w", err)
	}
	return nil
}

// Schema returns the statements that Migrate runs, and the rights that the user of the URL needs.
func Schema(url string) (string, error) {
	c, err := parse(url)
	if err != nil {
		return "", fmt.Errorf("postgres store: %w", err)
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
func (c *config) hosts() (*sqlstore.Hosts, error) {
	var hosts []sqlstore.Host
	for _, addr := range c.Addrs {
		p, err := c.connConfig(addr)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, sqlstore.Host{Name: addr, Connect: func(ctx context.Context, dial sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			return c.connect(ctx, dial, p)
		}})
	}
	return sqlstore.NewHosts(c.ConnectTimeout, hosts...), nil
}

// connConfig returns the client library's configuration, all of it from the URL.
func (c *config) connConfig(addr string) (*pgx.ConnConfig, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	// The library wants a configuration that it parsed. What it took from the environment is replaced.
	p, err := pgx.ParseConfig("host=localhost port=5432 user=x password=x dbname=x sslmode=disable")
	if err != nil {
		return nil, errors.New("a PG... variable in the environment is malformed; unset it")
	}
	p.Host, p.Port, p.User, p.Database = host, uint16(n), c.User, c.Database
	p.TLSConfig, p.Fallbacks = c.TLSFor(addr), nil
	p.ConnectTimeout, p.ValidateConnect = 0, nil
	p.RuntimeParams = map[string]string{"application_name": "holdfast"}
	p.KerberosSrvName, p.KerberosSpn, p.ChannelBinding = "", "", "prefer"
	p.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	if !c.Prepare {
		p.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	return p, nil
}

// connect makes a connection, and asks the server what it is.
func (c *config) connect(ctx context.Context, dial sqlstore.Dial, base *pgx.ConnConfig) (_ driver.Conn, state sqlstore.HostState, err error) {
	password, err := c.Password()
	if err != nil {
		return nil, state, err
	}
	p := base.Copy()
	p.Password = password
	p.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) { return dial(ctx, network, addr) }
	conn, err := stdlib.GetConnector(*p,
		// A connection that the server has closed is noticed without asking the server; see alive.
		stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return false }),
		stdlib.OptionResetSession(func(_ context.Context, c *pgx.Conn) error { return alive(c.PgConn().Conn()) }),
	).Connect(ctx)
	if err != nil {
		return nil, state, err
	}
	pg := &pgConn{conn.(*stdlib.Conn)}
	if state, err = hostState(ctx, pg.Conn.Conn()); err != nil {
		_ = conn.Close() // not used
		return nil, state, err
	}
	return pg, state, nil
}

// stateQuery returns whether the server takes no writes, its timeline and whose copy it is. The name of a file of the
// write-ahead log begins with the timeline, in hexadecimal. A standby knows that of its last restart point.
const stateQuery = "SELECT current_setting('transaction_read_only'), (SELECT system_identifier::text FROM pg_control_system())," +
	" CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::bigint FROM pg_control_checkpoint())" +
	" ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END"

// hostState asks a server what it is. One that does not let the user run these functions, or that has others, only says
// whether it takes writes.
func hostState(ctx context.Context, c *pgx.Conn) (state sqlstore.HostState, err error) {
	var readOnly string
	err = c.QueryRow(ctx, stateQuery, pgx.QueryExecModeSimpleProtocol).Scan(&readOnly, &state.Origin, &state.Timeline)
	if errors.As(err, new(*pgconn.PgError)) {
		state = sqlstore.HostState{}
		err = c.QueryRow(ctx, "SHOW transaction_read_only", pgx.QueryExecModeSimpleProtocol).Scan(&readOnly)
	}
	state.Writable = !strings.EqualFold(readOnly, "on")
	return state, err
}

// pgConn is a connection that does not go back into the pool when a call that was broken off has closed it.
type pgConn struct{ *stdlib.Conn }

func (c *pgConn) IsValid() bool { return !c.Conn.Conn().IsClosed() }

// alive returns driver.ErrBadConn if the server has closed the connection. What it says unasked is, as a rule, why it
// is about to.
func alive(c net.Conn) error {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if pending(c) {
		return driver.ErrBadConn
	}
	return nil
}
