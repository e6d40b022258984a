package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// TestInterleavings runs two requests against one store, on two servers, in every order that their store calls can
// have, and again with one of the two servers dying before each of its store calls. After every single step it checks
// the first rule of user records, that a session whose token a client holds is listed, and in the end everything else
// that is promised of the pair.
func TestInterleavings(t *testing.T) {
	refuse := holdfast.Config{MaxSessions: 2, RefuseAtLimit: true}
	login, relogin := opLogin("visitor"), opLogin("member")
	renew, logout := opSession("renew", "member"), opSession("logout", "member")
	writeX, writeY := opWrite("member", "x"), opWrite("member", "y")
	other := opLogin("stranger")

	bothWritten := func(w *world) error { return w.wantFields("member", "x", "y") }
	neverBoth := func(w *world) error {
		if w.answered("a") && w.answered("b") {
			return errors.New("both requests were answered 200")
		}
		return nil
	}
	ended := func(op string) func(*world) error {
		return func(w *world) error {
			if w.answered(op) && w.live(w.old["member"]) {
				return errors.New("the session that was ended lives")
			}
			return nil
		}
	}
	pairs := []pair{
		{"login, login of one visitor", limit(100), login, login, neverBoth},
		{"login, login at limit 2", limit(2), login, other, nil},
		{"login, login at limit 1", limit(1), login, other, nil},
		{"login, login refused at limit", refuse, login, other, nil},
		{"login, login unlimited", limit(-1), login, other, nil},
		{"login, write under the old token", limit(100), login, opWrite("visitor", "x"), func(w *world) error { return w.wantFields("visitor", "x") }},
		{"login, revoke user", limit(100), login, opRevokeUser, ended("b")},
		{"login, revoke user, unlimited", limit(-1), login, opRevokeUser, ended("b")},
		{"login, revoke user at limit 1", limit(1), login, opRevokeUser, ended("b")},
		{"login again, write", limit(100), relogin, writeX, func(w *world) error { return w.wantFields("member", "x") }},
		{"login again, logout", limit(100), relogin, logout, neverBoth},
		{"login again, renew", limit(100), relogin, renew, neverBoth},
		{"login again, revoke user", limit(100), relogin, opRevokeUser, ended("b")},
		{"renew, renew", limit(100), renew, renew, neverBoth},
		{"renew, renew unlimited", limit(-1), renew, renew, neverBoth},
		{"renew, write", limit(100), renew, writeX, func(w *world) error { return w.wantFields("member", "x") }},
		{"renew, update", limit(100), renew, opUpdate, func(w *world) error { return w.wantCount(1) }},
		{"renew, logout", limit(100), renew, logout, neverBoth},
		{"renew, revoke", limit(100), renew, opRevoke, ended("b")},
		{"renew, revoke user", limit(100), renew, opRevokeUser, func(w *world) error {
			if w.answered("b") && w.live(w.tokens["member"]) && !w.crashed {
				return errors.New("a session that was logged in before the revocation lives")
			}
			return nil
		}},
		{"renew, list", limit(100), renew, opList, nil},
		{"logout, write", limit(100), logout, writeX, ended("a")},
		{"logout, update", limit(100), logout, opUpdate, ended("a")},
		{"logout, touch", limit(100), logout, opTouch, ended("a")},
		{"logout, logout", limit(100), logout, logout, ended("a")},
		{"logout, revoke user", limit(100), logout, opRevokeUser, ended("a")},
		{"revoke, write", limit(100), opRevoke, writeX, ended("a")},
		{"revoke user, write", limit(100), opRevokeUser, writeX, ended("a")},
		{"revoke user, revoke user", limit(100), opRevokeUser, opRevokeUser, ended("a")},
		{"write, write of another field", limit(100), writeX, writeY, bothWritten},
		{"write, touch", limit(100), writeX, opTouch, func(w *world) error { return w.wantFields("member", "x") }},
		{"update, write", limit(100), opUpdate, writeX, func(w *world) error {
			return errors.Join(w.wantFields("member", "x"), w.wantCount(1))
		}},
		{"update, update", limit(100), opUpdate, opUpdate, func(w *world) error { return w.wantCount(2) }},
	}
	for _, native := range []bool{true, false} {
		for _, crash := range []bool{false, true} {
			for _, p := range pairs {
				t.Run(fmt.Sprintf("%s/merger=%v/crash=%v", p.name, native, crash), func(t *testing.T) {
					explore(t, p, crash, func(t *testing.T) *world { return newWorld(t, p.config, native, false) })
				})
			}
		}
	}
}

// pair are two requests that meet.
type pair struct {
	name   string
	config holdfast.Config
	a, b   op
	check  func(w *world) error // what this pair promises beyond world.check; may be nil
}

func limit(n int) holdfast.Config { return holdfast.Config{MaxSessions: n} }

// explore runs a pair in every schedule there is, each in a world of its own.
func explore(t *testing.T, p pair, crash bool, newWorld func(t *testing.T) *world) {
	var tree tree
	schedules := 0
	for more := true; more && !t.Failed(); more = tree.next() {
		schedules++
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			if !w.run(map[string]op{"a": p.a, "b": p.b}, &tree, crash) {
				return // another schedule has the same outcome
			}
			err := w.check()
			if p.check != nil {
				err = errors.Join(err, p.check(w))
			}
			if err = errors.Join(err, w.checkRevocation()); err != nil {
				t.Fatalf("schedule %d:\n%s\n%v", schedules, strings.Join(w.trace, "\n"), err)
			}
		})
	}
	t.Logf("%d schedules", schedules)
}

// tree walks all schedules depth first, but those that differ from another only in the order of two steps that do not
// matter to each other (sleep sets: Godefroid, Partial-Order Methods, 1996, chapter 5).
type tree struct {
	path  []node // of the current schedule
	depth int    // of the next step
}

type node struct {
	options []option
	chosen  int
	asleep  []option // steps whose turn it need not be: schedules that start with them were tried at a node above
}

// option is a step: a process makes its store call, or dies instead.
type option struct {
	process string
	call    access
	dies    bool
}

type access struct {
	name string
	id   driver.ID
}

// matters reports whether the order of two calls does. That of two writes always does, so that the schedules which are
// tried go through every state that the store can be in.
func (c access) matters(d access) bool {
	if c.name == "load" && d.name == "load" || c.name == "start" || d.name == "start" {
		return false
	}
	return c.name != "load" && d.name != "load" || c.id == d.id
}

// choose returns the next step, given those that are possible; false if all that follows was tried.
func (t *tree) choose(possible []option) (option, bool) {
	if t.depth == len(t.path) {
		n := node{}
		if t.depth > 0 {
			above := t.path[t.depth-1]
			last := above.options[above.chosen]
			for _, o := range slices.Concat(above.asleep, above.options[:above.chosen]) {
				if o.process != last.process && !last.dies && !o.dies && !o.call.matters(last.call) {
					n.asleep = append(n.asleep, o)
				}
			}
		}
		for _, o := range possible {
			if !slices.Contains(n.asleep, o) {
				n.options = append(n.options, o)
			}
		}
		if len(n.options) == 0 {
			return option{}, false
		}
		t.path = append(t.path, n)
	}
	n := t.path[t.depth]
	t.depth++
	return n.options[n.chosen], true
}

// next goes to the next schedule, and reports whether there is one.
func (t *tree) next() bool {
	t.depth = 0
	for len(t.path) > 0 {
		last := &t.path[len(t.path)-1]
		if last.chosen++; last.chosen < len(last.options) {
			return true
		}
		t.path = t.path[:len(t.path)-1]
	}
	return false
}

// op is one request, from the client whose token it uses.
type op struct {
	client string
	field  string // that it writes, if it does no more
	serve  func(m *holdfast.Manager, w http.ResponseWriter, r *http.Request, old map[string]string) error
}

var fieldCount = holdfast.NewField[int]("count")

// onSession makes a handler of a function that needs the session.
func onSession(f func(r *http.Request, s *holdfast.Session) error) func(*holdfast.Manager, http.ResponseWriter, *http.Request, map[string]string) error {
	return func(m *holdfast.Manager, _ http.ResponseWriter, r *http.Request, _ map[string]string) error {
		s, err := m.Get(r)
		if err != nil {
			return err
		}
		return f(r, s)
	}
}

func opLogin(client string) op {
	return op{client, "", onSession(func(r *http.Request, s *holdfast.Session) error { return s.Login(r.Context(), "ann") })}
}

func opSession(what, client string) op {
	return op{client, "", onSession(func(r *http.Request, s *holdfast.Session) error {
		if what == "renew" {
			return s.Renew(r.Context())
		}
		return s.Logout(r.Context())
	})}
}

func opWrite(client, field string) op {
	return op{client, field, onSession(func(_ *http.Request, s *holdfast.Session) error {
		return holdfast.NewField[string](field).Set(s, "written")
	})}
}

var (
	opUpdate = op{"member", "count", onSession(func(r *http.Request, s *holdfast.Session) error {
		_, err := fieldCount.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
		return err
	})}
	// The world's clock has moved on since the sessions were made: whoever uses one touches it.
	opTouch = op{"member", "", onSession(func(_ *http.Request, s *holdfast.Session) error {
		_, err := fieldCount.Get(s)
		return err
	})}
	opRevokeUser = op{"admin", "", func(m *holdfast.Manager, _ http.ResponseWriter, r *http.Request, _ map[string]string) error {
		return m.RevokeUser(r.Context(), "ann")
	}}
	opRevoke = op{"admin", "", func(m *holdfast.Manager, _ http.ResponseWriter, r *http.Request, old map[string]string) error {
		id := idOf(old["member"])
		return m.Revoke(r.Context(), id)
	}}
	opList = op{"admin", "", func(m *holdfast.Manager, _ http.ResponseWriter, r *http.Request, _ map[string]string) error {
		_, err := m.List(r.Context(), "ann")
		return err
	}}
)

// world is a store, two servers and some clients: a visitor and a stranger with anonymous sessions, and a member whose
// session is logged in as ann.
type world struct {
	store   *memory.Store
	servers map[string]*holdfast.Manager
	config  holdfast.Config
	old     map[string]string // client -> token, before the two requests
	tokens  map[string]string // client -> token, latest
	held    []string          // every token that ever reached a client
	status  map[string]int    // op -> status; absent if its server died
	ops     map[string]op
	crashed bool
	sealed  bool
	broken  error // the first step after which the invariant did not hold
	trace   []string
}

func newWorld(t *testing.T, config holdfast.Config, native, sealed bool) *world {
	w := &world{
		sealed: sealed,
		store:  memory.New(), servers: map[string]*holdfast.Manager{}, old: map[string]string{},
		tokens: map[string]string{}, status: map[string]int{},
	}
	t.Cleanup(func() { _ = w.store.Close() })
	config.Cookie.AllowPlainLocalhost = true
	config.IdleTimeout = time.Minute // short, as the memory store sweeps once a second
	w.config = config
	for i, name := range []string{"a", "b", "setup"} {
		config.Rand = rand.NewChaCha8([32]byte{byte(i)}) // the same IDs in every schedule
		var store driver.Store = &steppedStore{w.store}
		if native {
			store = &steppedMerger{steppedStore{w.store}}
		}
		m, err := holdfast.New(store, config)
		if sealed {
			config.Logger = slog.New(slog.DiscardHandler)
			m, err = holdfast.NewSealed(newFakeSealer(), store, config)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.servers[name] = m
	}
	start := opWrite("", "start")
	for _, client := range []string{"visitor", "stranger", "member"} {
		start.client = client
		w.request(context.Background(), "setup", start)
	}
	w.request(context.Background(), "setup", opLogin("member"))
	clear(w.status)
	for client, token := range w.tokens {
		w.old[client] = token
	}
	time.Sleep(config.IdleTimeout / 10)
	return w
}

// request runs one op to its end, on a server, and gives the client the cookie it got.
func (w *world) request(ctx context.Context, server string, o op) {
	w.requestWith(ctx, server, o, w.tokens[o.client])
}

func (w *world) requestWith(ctx context.Context, server string, o op, token string) {
	m := w.servers[server]
	r := httptest.NewRequestWithContext(ctx, "POST", "http://localhost/", nil)
	if token != "" {
		r.AddCookie(&http.Cookie{Name: "session", Value: token})
	}
	rec := httptest.NewRecorder()
	m.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if err := o.serve(m, rw, r, w.old); err != nil {
			m.Error(rw, r, err)
		}
	})).ServeHTTP(rec, r)
	w.status[server] = rec.Code
	w.trace = append(w.trace, fmt.Sprintf("%s answered %d", server, rec.Code))
	for _, c := range rec.Result().Cookies() {
		w.tokens[o.client] = c.Value
		if c.Value != "" {
			w.held = append(w.held, c.Value)
		}
	}
}

// process is a server at work on its one request. It stops before every store call, until told to go on or to die.
type process struct {
	name  string
	at    atomic.Pointer[access] // that it stands before; nil while it runs or waits for something else
	goOn  chan bool
	ended atomic.Bool
}

type processKey struct{}

// run lets the two ops run in the order that the tree says. It returns false if the tree has tried all that follows.
func (w *world) run(ops map[string]op, tree *tree, crash bool) bool {
	w.ops = ops
	var all []*process
	for _, name := range []string{"a", "b"} {
		p, token := &process{name: name, goOn: make(chan bool)}, w.tokens[ops[name].client]
		all = append(all, p)
		go func() {
			defer p.ended.Store(true)
			ctx := context.WithValue(context.Background(), processKey{}, p)
			if w.sealed {
				step(ctx, "start", driver.ID{}) // some requests make no call at all, and would run beside the other
			}
			w.requestWith(ctx, name, ops[name], token)
		}()
	}
	last := ""
	for {
		synctest.Wait()
		if err := w.checkListed(); err != nil && w.broken == nil {
			w.broken = err
		}
		var possible []option
		for _, p := range all {
			if at := p.at.Load(); at != nil {
				possible = append(possible, option{process: p.name, call: *at})
			}
		}
		if len(possible) == 0 {
			if !slices.ContainsFunc(all, func(p *process) bool { return !p.ended.Load() }) {
				return true
			}
			time.Sleep(time.Millisecond) // one is pausing before it tries again
			continue
		}
		// To die is the same whenever it happens between two steps of a process: right after the first of them.
		for _, o := range possible {
			if crash && !w.crashed && (last == o.process || last == "") {
				possible = append(possible, option{process: o.process, call: o.call, dies: true})
			}
		}
		o, ok := tree.choose(possible)
		for _, p := range all {
			if ok && p.name == o.process {
				w.trace = append(w.trace, fmt.Sprintf("%s: %s %v%s", p.name, o.call.name, o.call.id, map[bool]string{true: " DIES"}[o.dies]))
				p.at.Store(nil)
				p.goOn <- !o.dies
			} else if !ok && p.at.Load() != nil {
				p.goOn <- false
			}
		}
		if !ok {
			return false
		}
		last, w.crashed = o.process, w.crashed || o.dies
	}
}

// steppedStore stops the process before each call.
type steppedStore struct{ *memory.Store }

func step(ctx context.Context, call string, id driver.ID) {
	p, ok := ctx.Value(processKey{}).(*process)
	if !ok {
		return
	}
	p.at.Store(&access{call, id})
	if !<-p.goOn {
		runtime.Goexit()
	}
}

func (s *steppedStore) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	step(ctx, "load", id)
	return s.Store.Load(ctx, id)
}

func (s *steppedStore) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	step(ctx, "save", id)
	return s.Store.Save(ctx, id, rec, prev)
}

func (s *steppedStore) Delete(ctx context.Context, id driver.ID) error {
	step(ctx, "delete", id)
	return s.Store.Delete(ctx, id)
}

// Merge has another type, so that the Manager does not see it.
func (s *steppedStore) Merge() {}

type steppedMerger struct{ steppedStore }

func (s *steppedMerger) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	step(ctx, "merge", id)
	return s.Store.Merge(ctx, id, base, next, changes)
}

// record returns what the store has under a token, if that is a session.
func (w *world) record(token string) (driver.Record, bool) {
	if token == "" {
		return driver.Record{}, false
	}
	if w.sealed {
		return w.opened(token)
	}
	rec, err := w.store.Load(context.Background(), holdfast.MustTokenID(token))
	return rec, err == nil && !rec.Created.IsZero()
}

func (w *world) live(token string) bool { _, ok := w.record(token); return ok }

func (w *world) answered(server string) bool { return w.status[server] == http.StatusOK }

// checkListed checks that every session of ann that a client holds the token of is listed.
func (w *world) checkListed() error {
	if w.sealed {
		return nil // nothing but the list makes them live
	}
	list, err := w.store.Load(context.Background(), holdfast.UserID("ann"))
	if err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	for _, token := range w.held {
		rec, ok := w.record(token)
		id := holdfast.MustTokenID(token)
		if _, listed := list.Fields.Get(string(id[:])); ok && rec.User == "ann" && !listed {
			w.trace = append(w.trace, "HERE")
			return fmt.Errorf("session %v of ann lives, and is not listed", id)
		}
	}
	return nil
}

// check checks what holds after any pair of ops.
func (w *world) check() error {
	if w.broken != nil {
		return w.broken
	}
	sessions := 0
	if w.sealed {
		live := map[driver.ID]bool{}
		for _, token := range w.held {
			if rec, ok := w.record(token); ok && rec.User == "ann" {
				live[idOf(token)] = true
			}
		}
		sessions = len(live)
	}
	for item, err := range w.store.List(context.Background()) {
		if err != nil {
			return err
		}
		if item.Record.User == "ann" && item.ID != holdfast.UserID("ann") && !w.sealed {
			sessions++
		}
	}
	if limit := w.config.MaxSessions; limit > 0 && sessions > limit && !w.crashed {
		return fmt.Errorf("ann has %d sessions, at most %d", sessions, limit)
	}
	for server, status := range w.status {
		if status >= 500 {
			return fmt.Errorf("%s was answered %d", server, status)
		}
	}
	return nil
}

// checkRevocation checks that after RevokeUser nobody is logged in as ann, whatever happened before.
func (w *world) checkRevocation() error {
	if err := w.servers["setup"].RevokeUser(context.Background(), "ann"); err != nil {
		return err
	}
	for _, token := range w.held {
		if rec, ok := w.record(token); ok && rec.User == "ann" {
			return fmt.Errorf("session %v of ann survived RevokeUser", idOf(token))
		}
	}
	return nil
}

// wantFields checks that the writes of fields that were answered 200 are in the client's session, if it has one.
func (w *world) wantFields(client string, fields ...string) error {
	rec, ok := w.record(w.tokens[client])
	if !ok {
		if w.crashed {
			return nil // the client's cookie may have died with the server that was to replace it
		}
		return errors.New("the client has no session any more")
	}
	for server, o := range w.ops {
		for _, f := range fields {
			if _, has := rec.Fields.Get(f); !has && w.answered(server) && o.client == client && o.field == f {
				return fmt.Errorf("the write of %s was answered 200 and is not in the session", f)
			}
		}
	}
	return nil
}

// wantCount checks that the counter has at least one for every Update that was answered 200, at most max, and exactly
// as many as were answered where no server died.
func (w *world) wantCount(most int) error {
	rec, ok := w.record(w.tokens["member"])
	if !ok {
		if w.crashed {
			return nil
		}
		return errors.New("the client has no session any more")
	}
	answered := 0
	for server, o := range w.ops {
		if w.answered(server) && o.field == "count" {
			answered++
		}
	}
	b, _ := rec.Fields.Get("count")
	var n int
	if b != nil {
		if _, err := fmt.Sscan(string(b), &n); err != nil {
			return err
		}
	}
	if n < answered || n > most || n != answered && !w.crashed {
		return fmt.Errorf("counter is %d after %d updates were answered 200", n, answered)
	}
	return nil
}
