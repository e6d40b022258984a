package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/mysqlstore"
	"github.com/alexedwards/scs/pgxstore"
	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

const (
	lifetime    = 12 * time.Hour
	idleTimeout = 30 * time.Minute
)

// An app is a library set up over a store: its middleware, and what a handler does with it. A func is nil where the
// library has no such thing.
type app struct {
	wrap  func(http.Handler) http.Handler
	get   func(r *http.Request, field int) (string, error)
	set   func(w http.ResponseWriter, r *http.Request, field int, value string) error
	fill  func(w http.ResponseWriter, values []string) error // begins a session with all fields, where set cannot
	touch func(w http.ResponseWriter, r *http.Request) error // extends the idle timeout, where that needs a call
	renew func(r *http.Request) error
	end   func(w http.ResponseWriter, r *http.Request) error
	// add adds one to the counter of the session, in the safest way that the library has.
	add   func(w http.ResponseWriter, r *http.Request) error
	count func(r *http.Request) (int, error)
	close func()
}

// setup says how an app is set up.
type setup struct {
	server
	// idle switches the idle timeout on. (Holdfast's always is.)
	idle bool
	// due makes every session that Holdfast loads look as if it had last been seen two minutes ago, so that its idle
	// timeout is due to be extended. Libraries that extend it on every request need no such thing.
	due bool
}

// A library is one row of a table.
type library struct {
	name   string
	stores []string // with which it is compared
	can    func(operation) bool
	open   func(setup) (*app, error)
}

func everything(operation) bool { return true }

// ignoring is what rows without sessions can do.
func ignoring(o operation) bool { return o == opNoCookie || o == opUntouched }

// allButRenew is for libraries whose sessions have no token.
func allButRenew(o operation) bool { return o != opRenew }

const (
	bareName     = "no middleware"
	wrapperName  = "writer wrapper"
	contextName  = "writer wrapper + context value"
	holdfastName = "holdfast"
	scsName      = "scs (gob)"
	scsJSONName  = "scs (JSON)"
	gorillaName  = "gorilla CookieStore (gob)"
)

var libraries = []library{
	{name: bareName, stores: []string{"memory"}, can: ignoring, open: func(setup) (*app, error) {
		return &app{wrap: func(h http.Handler) http.Handler { return h }, close: func() {}}, nil
	}},
	{name: wrapperName, stores: []string{"memory"}, can: ignoring, open: func(setup) (*app, error) {
		return &app{wrap: wrapWriter, close: func() {}}, nil
	}},
	{name: contextName, stores: []string{"memory"}, can: ignoring, open: func(setup) (*app, error) {
		return &app{wrap: wrapWriterAndContext, close: func() {}}, nil
	}},
	{name: holdfastName, stores: allStores, can: everything, open: openHoldfast},
	{name: scsName, stores: allStores, can: everything, open: func(s setup) (*app, error) { return openSCS(s, scs.GobCodec{}) }},
	{name: scsJSONName, stores: allStores, can: everything, open: func(s setup) (*app, error) { return openSCS(s, jsonCodec{}) }},
	{name: gorillaName, stores: []string{"memory"}, can: allButRenew, open: openGorilla},
}

// wrapper is the least that a middleware needs to act before the first byte.
type wrapper struct {
	http.ResponseWriter
	wrote bool
}

func (w *wrapper) WriteHeader(status int) {
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *wrapper) Write(b []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(b)
}

func (w *wrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func wrapWriter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&wrapper{ResponseWriter: w}, r)
	})
}

type wrapperKey struct{}

// wrapWriterAndContext also puts one value into the request's context, as every session middleware must: there is no
// other way from a request to its session.
func wrapWriterAndContext(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &wrapper{ResponseWriter: w}
		next.ServeHTTP(x, r.WithContext(context.WithValue(r.Context(), wrapperKey{}, x)))
	})
}

var (
	fields  [100]holdfast.Field[string]
	counter = holdfast.NewField[int]("counter")
)

func init() {
	for i := range fields {
		fields[i] = holdfast.NewField[string](fieldName(i))
	}
}

var fieldNames = func() (names [100]string) {
	for i := range names {
		names[i] = fmt.Sprintf("field%d", i)
	}
	return names
}()

func fieldName(i int) string { return fieldNames[i] }

// dueMemory and its like make every record look old; see setup.
type (
	dueMemory struct{ *memory.Store }
	dueRedis  struct{ *redisstore.Store }
	dueSQL    struct{ *sqlstore.Store }
)

func old(rec driver.Record, err error) (driver.Record, error) {
	rec.Seen = rec.Seen.Add(-idleTimeout / 15)
	return rec, err
}

func (s dueMemory) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	return old(s.Store.Load(ctx, id))
}

func (s dueRedis) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	return old(s.Store.Load(ctx, id))
}

func (s dueSQL) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	return old(s.Store.Load(ctx, id))
}

// openStore opens Holdfast's store.
func openStore(s setup) (driver.Store, error) {
	switch ctx := context.Background(); s.kind {
	case "redis":
		r, err := redisstore.Open(ctx, "redis://"+s.addr+"?prefix=holdfast:")
		if err != nil || !s.due {
			return r, err
		}
		return dueRedis{r}, nil
	case "mysql", "postgres":
		open := mysql.Open
		if s.kind == "postgres" {
			open = postgres.Open
		}
		url := s.kind + "://" + testserver.DatabaseUser + ":" + testserver.DatabasePassword + "@" + s.addr + "/" + testserver.Database
		r, err := open(ctx, url+"?max_conns="+strconv.Itoa(connections))
		if err != nil || !s.due {
			return r, err
		}
		return dueSQL{r}, nil
	}
	if m := memory.New(); s.due {
		return dueMemory{m}, nil
	} else {
		return m, nil
	}
}

func openHoldfast(s setup) (*app, error) {
	store, err := openStore(s)
	if err != nil {
		return nil, err
	}
	m, err := holdfast.New(store, holdfast.Config{Lifetime: lifetime, IdleTimeout: idleTimeout})
	if err != nil {
		return nil, err
	}
	a := holdfastApp(m)
	a.close = func() { _ = store.Close() } // always nil
	return a, nil
}

func holdfastApp(m *holdfast.Manager) *app {
	return &app{
		wrap: m.Handler,
		get: func(r *http.Request, field int) (string, error) {
			s, err := m.Get(r)
			if err != nil {
				return "", err
			}
			return fields[field].Get(s)
		},
		set: func(_ http.ResponseWriter, r *http.Request, field int, value string) error {
			s, err := m.Get(r)
			if err != nil {
				return err
			}
			return fields[field].Set(s, value)
		},
		renew: func(r *http.Request) error {
			s, err := m.Get(r)
			if err != nil {
				return err
			}
			return s.Renew(r.Context())
		},
		end: func(_ http.ResponseWriter, r *http.Request) error {
			s, err := m.Get(r)
			if err != nil {
				return err
			}
			return s.Logout(r.Context())
		},
		add: func(_ http.ResponseWriter, r *http.Request) error {
			s, err := m.Get(r)
			if err != nil {
				return err
			}
			_, err = counter.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
			return err
		},
		count: func(r *http.Request) (int, error) {
			s, err := m.Get(r)
			if err != nil {
				return 0, err
			}
			return counter.Get(s)
		},
		close: func() {},
	}
}

// jsonCodec has scs keep sessions as JSON, as Holdfast keeps values.
type jsonCodec struct{}

type jsonSession struct {
	Deadline time.Time
	Values   map[string]any
}

func (jsonCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	return json.Marshal(jsonSession{deadline, values})
}

func (jsonCodec) Decode(b []byte) (time.Time, map[string]any, error) {
	var s jsonSession
	err := json.Unmarshal(b, &s)
	return s.Deadline, s.Values, err
}

func openSCS(s setup, codec scs.Codec) (*app, error) {
	m := scs.New()
	m.Lifetime = lifetime
	m.Codec = codec
	if s.idle {
		m.IdleTimeout = idleTimeout
	}
	closer := func() {}
	switch s.kind {
	case "redis":
		client := redis.NewClient(&redis.Options{Addr: s.addr})
		closer = func() { _ = client.Close() } // nothing is under way
		m.Store = goredisstore.New(client)
	case "mysql":
		db, err := openMySQL(s.addr)
		if err != nil {
			return nil, err
		}
		closer = func() { _ = db.Close() }
		m.Store = mysqlstore.NewWithCleanupInterval(db, 0)
	case "postgres":
		pool, err := openPostgres(s.addr)
		if err != nil {
			return nil, err
		}
		closer = pool.Close
		m.Store = pgxstore.NewWithCleanupInterval(pool, 0)
	default:
		m.Store = memstore.NewWithCleanupInterval(0)
	}
	return &app{
		wrap: m.LoadAndSave,
		get: func(r *http.Request, field int) (string, error) {
			return m.GetString(r.Context(), fieldName(field)), nil
		},
		set: func(_ http.ResponseWriter, r *http.Request, field int, value string) error {
			m.Put(r.Context(), fieldName(field), value)
			return nil
		},
		renew: func(r *http.Request) error { return m.RenewToken(r.Context()) },
		end:   func(_ http.ResponseWriter, r *http.Request) error { return m.Destroy(r.Context()) },
		add: func(_ http.ResponseWriter, r *http.Request) error {
			n, err := scsCount(m, r)
			m.Put(r.Context(), "counter", n+1)
			return err
		},
		count: func(r *http.Request) (int, error) { return scsCount(m, r) },
		close: closer,
	}, nil
}

// scsCount returns the counter, which is a float64 after it went through JSON.
func scsCount(m *scs.SessionManager, r *http.Request) (int, error) {
	switch n := m.Get(r.Context(), "counter").(type) {
	case nil:
		return 0, nil
	case int:
		return n, nil
	case float64:
		return int(n), nil
	default:
		return 0, fmt.Errorf("counter is a %T", n)
	}
}

const gorillaCookie = "session"

func openGorilla(setup) (*app, error) {
	return gorillaApp(sessions.NewCookieStore([]byte("a key of 32 bytes to sign with.."))), nil
}

func gorillaApp(store *sessions.CookieStore) *app {
	store.MaxAge(int(lifetime / time.Second))
	return &app{
		wrap: func(h http.Handler) http.Handler { return h },
		get: func(r *http.Request, field int) (string, error) {
			s, err := store.Get(r, gorillaCookie)
			v, _ := s.Values[fieldName(field)].(string)
			return v, err
		},
		set: func(w http.ResponseWriter, r *http.Request, field int, value string) error {
			s, err := store.Get(r, gorillaCookie)
			if err != nil {
				return err
			}
			s.Values[fieldName(field)] = value
			return s.Save(r, w)
		},
		touch: func(w http.ResponseWriter, r *http.Request) error {
			s, err := store.Get(r, gorillaCookie)
			if err != nil {
				return err
			}
			return s.Save(r, w)
		},
		end: func(w http.ResponseWriter, r *http.Request) error {
			s, err := store.Get(r, gorillaCookie)
			if err != nil {
				return err
			}
			s.Options.MaxAge = -1
			return s.Save(r, w)
		},
		add: func(w http.ResponseWriter, r *http.Request) error {
			s, err := store.Get(r, gorillaCookie)
			if err != nil {
				return err
			}
			n, _ := s.Values["counter"].(int)
			s.Values["counter"] = n + 1
			return s.Save(r, w)
		},
		count: func(r *http.Request) (int, error) {
			s, err := store.Get(r, gorillaCookie)
			n, _ := s.Values["counter"].(int)
			return n, err
		},
		close: func() {},
	}
}
