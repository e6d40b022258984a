// Package sqlstore keeps sessions in a table of a database. It is what the stores for MySQL and MariaDB, PostgreSQL and
// SQLite have in common; a program imports the package of its database, and links no other client:
//
//	store, err := mysql.Open(ctx, "mysql://app:secret@db1,db2/shop")
//	store, err := postgres.Open(ctx, "postgres://app:secret@db1,db2/shop")
//	store, err := sqlite.Open(ctx, "sqlite:/var/lib/app/sessions.db")
//
// A record is one row. A read is one statement and so is a write, in one round trip, and a transaction is never left
// open between two. Every write but a Delete compares the row's revision in the statement itself, so that of two
// writers one gets ErrConflict, on whatever server they are. What has expired is removed in small portions by one
// process at a time, and is not served in the meantime. docs/stores/ has a page for each database: the statements,
// the rights a user needs, what is guaranteed, and how it fails.
//
// The package does not merge changes itself; the Manager does it, by loading again after a conflict.
package sqlstore

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Config are the settings of a store. The packages of the databases fill in all but Logger from a URL.
type Config struct {
	// Logger is told when expired rows cannot be removed. nil: slog.Default().
	Logger *slog.Logger
	// Table is the name of the table, which is written into statements as it is.
	Table string
	// SweepEvery is how often expired rows are removed, by whichever process has that task. Negative: never by this one.
	SweepEvery time.Duration
	// MaxConns bounds the connections of this process.
	MaxConns int
	// URL is shown in errors that name a command to run: without a password.
	URL string
	// User is named in errors about rights.
	User string
}

// Store keeps records in a table. It implements driver.Store, Toucher, Lister, Sweeper, Stater and Describer.
type Store struct {
	dialect     Dialect
	config      Config
	db          *sql.DB
	hosts       *Hosts // nil: the database is no server
	description driver.Description

	load, insert, update, touch, exists, remove, list, sweep *statement
	lease, clock                                             *statement

	// write has room for one writer, if the database has.
	write chan struct{}

	// ctx ends when Close gives up on calls that are under way.
	ctx    context.Context
	cancel context.CancelFunc
	calls  sync.WaitGroup
	// sweeping ends when Close begins.
	sweeping     context.Context
	stopSweeping context.CancelFunc

	mu sync.Mutex

	// mu guards the fields below. No call begins once closed is set.
	closed bool
	done   chan struct{} // closed when Close has ended
}

// Open opens a store over connector, which is a *Hosts for databases that are servers. It makes the table if it is
// missing and the user may, and refuses one that is not as it should be. The store closes connector's connections.
func Open(ctx context.Context, d Dialect, connector sqldriver.Connector, c Config) (*Store, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	s := newStore(d, connector, c)
	if err := s.start(ctx); err != nil {
		_ = s.Close() // always nil
		return nil, err
	}
	if c.SweepEvery > 0 {
		s.calls.Go(s.sweepUntilClosed)
	}
	return s, nil
}

// newStore makes a store that is not connected yet.
func newStore(d Dialect, connector sqldriver.Connector, c Config) *Store {
	s := &Store{dialect: d, config: c, db: sql.OpenDB(connector), done: make(chan struct{})}
	s.hosts, _ = connector.(*Hosts)
	s.description = driver.Description{Name: d.Name, Shared: true}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.sweeping, s.stopSweeping = context.WithCancel(s.ctx)
	if d.OneWriter {
		s.write = make(chan struct{}, 1)
	}
	s.db.SetMaxOpenConns(c.MaxConns)
	s.db.SetMaxIdleConns(c.MaxConns)
	s.db.SetConnMaxIdleTime(5 * time.Minute)
	if s.hosts != nil {
		s.db.SetConnMaxLifetime(30 * time.Minute) // so that a host that came back gets its share
	}
	compile := func(text string) *statement { return d.compile(text, c.Table) }
	s.load = compile("SELECT revision, seen, expires, data FROM {table} WHERE id = {id}")
	s.insert = compile(d.Insert)
	s.update = compile("UPDATE {table} SET revision = {revision}, seen = {seen}, expires = {expires}, sweep = {sweep}, data = {data}" +
		" WHERE id = {id} AND revision = {prev} AND expires > {now}")
	s.touch = compile(d.Touch)
	s.exists = compile("SELECT 1 FROM {table} WHERE id = {id} AND expires > {now}")
	s.remove = compile("DELETE FROM {table} WHERE id = {id}")
	s.list = compile("SELECT id, revision, seen, expires, data FROM {table} WHERE id > {id} ORDER BY id LIMIT {limit}")
	s.sweep = compile(d.Sweep)
	s.lease = compile("UPDATE {meta} SET owner = {owner}, until = {clock} + {life} WHERE name = 'sweep' AND (owner = {owner} OR until <= {clock})")
	s.clock = compile("SELECT {clock}")
	return s
}

// prepared returns st, prepared, if it is one of those that requests run and the dialect wants it: each is sent to each
// connection once. It returns nil otherwise.
func (s *Store) prepared(ctx context.Context, st *statement) (*sql.Stmt, error) {
	stmt := st.stmt.Load()
	if stmt != nil || !st.prepare {
		return stmt, nil
	}
	stmt, err := s.db.PrepareContext(ctx, st.sql)
	if err != nil {
		return nil, err
	}
	if !st.stmt.CompareAndSwap(nil, stmt) {
		_ = stmt.Close() // another caller was first
		stmt = st.stmt.Load()
	}
	return stmt, nil
}

// prepareAll prepares statements before the first request. A server that takes no writes does not prepare any either.
func (s *Store) prepareAll(ctx context.Context) error {
	for _, st := range []*statement{s.load, s.insert, s.update, s.touch, s.remove} {
		st.prepare = s.dialect.Prepare
		if _, err := s.prepared(ctx, st); err != nil && s.dialect.Classify(err) != ReadOnly {
			return err
		}
	}
	return nil
}

// Load returns the record, or ErrNotFound if it is absent, expired or ended. It is repeated once if the connection
// breaks.
func (s *Store) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	var r row
	err := s.call(ctx, func(ctx context.Context) error {
		return s.queryRow(ctx, s.load, &args{argID: id[:]}, &r.revision, &r.seen, &r.expires, &r.data)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return driver.Record{}, driver.ErrNotFound
	}
	if err != nil {
		return driver.Record{}, err
	}
	return r.record(time.Now())
}

// Save writes rec if the stored revision is prev (0: absent or expired), or returns ErrConflict. It is not sent twice
// unless the database says that it undid the first: a caller that repeats one whose answer was lost gets ErrConflict if
// it was carried out.
func (s *Store) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	a, err := s.recordArgs(id, rec, prev, true)
	if err != nil {
		return err
	}
	st := s.update
	if prev == 0 {
		st = s.insert
	}
	res, err := s.exec(ctx, st, a)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return driver.Unavailable(err)
	}
	if n == 0 {
		return driver.ErrConflict
	}
	return nil
}

// Touch gives the stored record next's Seen, Expires and Revision if its revision is prev. It sends no fields.
func (s *Store) Touch(ctx context.Context, id driver.ID, next driver.Record, prev uint64) error {
	a, err := s.recordArgs(id, next, prev, false)
	if err != nil {
		return err
	}
	res, err := s.exec(ctx, s.touch, a)
	if err != nil {
		return err
	}
	touched, err := s.touched(ctx, res, a)
	switch {
	case err != nil:
		return err
	case touched == TouchLost:
		return driver.ErrConflict
	case touched == TouchAbsent:
		return driver.ErrNotFound
	}
	return nil
}

// touched says what became of a touch.
func (s *Store) touched(ctx context.Context, res sql.Result, a *args) (Touched, error) {
	if s.dialect.Touched != nil {
		t, err := s.dialect.Touched(res)
		return t, driver.Unavailable(err)
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return TouchDone, driver.Unavailable(err)
	}
	var one int
	err := s.call(ctx, func(ctx context.Context) error { return s.queryRow(ctx, s.exists, a, &one) })
	if errors.Is(err, sql.ErrNoRows) {
		return TouchAbsent, nil
	}
	return TouchLost, err
}

// Delete ends the session. Ending an absent one is not an error. No statement creates a row from a revision other than
// 0, so nothing that is still under way brings it back.
func (s *Store) Delete(ctx context.Context, id driver.ID) error {
	_, err := s.exec(ctx, s.remove, &args{argID: id[:]})
	return err
}

// Describe says what the database said of the table when the store was opened.
func (s *Store) Describe() driver.Description { return s.description }
