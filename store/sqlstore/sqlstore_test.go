package sqlstore_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCompile(t *testing.T) {
	const text = "UPDATE {table} SET a = {id}, b = {now} WHERE {now} > {clock} AND {id} = {prev} -- {meta}"
	tests := []struct {
		name  string
		d     sqlstore.Dialect
		sql   string
		names []string
	}{
		{"no numbers", sqlstore.Dialect{Placeholder: sqlstore.Question, Repeats: true, Clock: "NOW()"},
			"UPDATE t SET a = ?, b = ? WHERE ? > NOW() AND ? = ? -- t_meta", []string{"id", "now", "now", "id", "prev"}},
		{"dollars", sqlstore.Dialect{Placeholder: sqlstore.Dollar, Clock: "now()"},
			"UPDATE t SET a = $1, b = $2 WHERE $2 > now() AND $1 = $3 -- t_meta", []string{"id", "now", "prev"}},
		{"numbers", sqlstore.Dialect{Placeholder: sqlstore.QuestionNumber, Clock: "x"},
			"UPDATE t SET a = ?1, b = ?2 WHERE ?2 > x AND ?1 = ?3 -- t_meta", []string{"id", "now", "prev"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, names := sqlstore.Compile(tt.d, text, "t")
			if got != tt.sql {
				t.Errorf("Compile = %s, want %s", got, tt.sql)
			}
			if diff := cmp.Diff(tt.names, names); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
		})
	}
}

// What has the sweep of a moment has expired at it, and everything that expired a step before has.
func TestSweepColumn(t *testing.T) {
	const step = 15 * time.Minute
	base := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, now := range []time.Time{base, base.Add(time.Millisecond), base.Add(step - time.Millisecond), base.Add(7 * time.Minute)} {
		for _, ago := range []time.Duration{-time.Hour, -time.Millisecond, 0, time.Millisecond, time.Minute, step - time.Millisecond, step, time.Hour} {
			expires := now.Add(-ago)
			found := sqlstore.SweepOf(expires) <= sqlstore.SweepBefore(now)
			if found && expires.After(now) {
				t.Errorf("at %v, what expires %v later counts as expired", now, -ago)
			}
			if !found && ago >= step {
				t.Errorf("at %v, what expired %v ago does not count as expired", now, ago)
			}
		}
	}
	for _, far := range []time.Time{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.UnixMilli(math.MaxInt64), time.UnixMilli(-1), {}} {
		if s := sqlstore.SweepOf(far); s < 0 || s > math.MaxInt32 {
			t.Errorf("sweep of %v is %d, which is no 32-bit number", far, s)
		}
	}
}

// The clean-up rests twice as long as a batch took, longer when batches slow down, and gets used to a slower table.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	got := sqlstore.Rests(10*ms, 10*ms, 30*ms, 1000*ms, 10*ms, 0)
	for i, want := range []time.Duration{20 * ms, 20 * ms, 180 * ms, 8000 * ms, 20 * ms, 5 * ms} {
		if got[i] < want*9/10 || got[i] > want*11/10 {
			t.Errorf("rest number %d is %v, want about %v", i+1, got[i], want)
		}
	}
	long := sqlstore.Rests(slices.Concat([]time.Duration{10 * ms}, slices.Repeat([]time.Duration{20 * ms}, 200))...)
	if last := long[len(long)-1]; last > 42*ms {
		t.Errorf("after 200 batches of 20ms the rest is %v, want about 40ms", last)
	}
}

// A host that does not answer gets its share of the time, and no more.
func TestHostsShareTime(t *testing.T) {
	hang := func(ctx context.Context, _ sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
		<-ctx.Done()
		return nil, sqlstore.HostState{}, ctx.Err()
	}
	refused := errors.New("refused")
	var reached bool
	h := sqlstore.NewHosts(time.Minute, sqlstore.Host{Name: "a", Connect: hang}, sqlstore.Host{Name: "b", Connect: hang},
		sqlstore.Host{Name: "c", Connect: func(context.Context, sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			reached = true
			return nil, sqlstore.HostState{}, refused
		}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := h.Connect(ctx)
	if !reached || !errors.Is(err, refused) || !strings.Contains(err.Error(), "no host takes writes") {
		t.Errorf("Connect = %v, third host reached: %v", err, reached)
	}
}

// fakeConn is a connection that can be closed.
type fakeConn struct {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.SessionResetter
	host string
}

func (c *fakeConn) Close() error                        { return nil }
func (c *fakeConn) ResetSession(context.Context) error  { return nil }
func (c *fakeConn) Prepare(string) (driver.Stmt, error) { return nil, errors.New(c.host) }

// A login that breaks off does not move the store to another host that takes writes; one that breaks off twice, a host that
// cannot be reached and one that does not answer do.
func TestBrokenLogin(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func(name string, attempt func(ctx context.Context, n int, dial sqlstore.Dial) error) sqlstore.Host {
		n := 0
		return sqlstore.Host{Name: name, Connect: func(ctx context.Context, dial sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			n++
			return &fakeConn{host: name}, sqlstore.HostState{Writable: true}, attempt(ctx, n, dial)
		}}
	}
	reach := func(ctx context.Context, dial sqlstore.Dial) error {
		c, err := dial(ctx, "tcp", l.Addr().String())
		if err == nil {
			defer c.Close()
		}
		return err
	}
	for name, tt := range map[string]struct {
		attempt func(ctx context.Context, n int, dial sqlstore.Dial) error
		want    string
	}{
		"broken off once": {func(ctx context.Context, n int, dial sqlstore.Dial) error {
			if err := reach(ctx, dial); err != nil || n > 1 {
				return err
			}
			return io.ErrUnexpectedEOF
		}, "a"},
		"broken off twice": {func(ctx context.Context, n int, dial sqlstore.Dial) error {
			if err := reach(ctx, dial); err != nil || n > 2 {
				return err
			}
			return io.ErrUnexpectedEOF
		}, "b"},
		"not reached": {func(_ context.Context, n int, _ sqlstore.Dial) error {
			if n > 1 {
				return nil
			}
			return errors.New("connection refused")
		}, "b"},
		"no answer": {func(ctx context.Context, n int, dial sqlstore.Dial) error {
			if err := reach(ctx, dial); err != nil || n > 1 {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			h := sqlstore.NewHosts(200*time.Millisecond, connect("a", tt.attempt), connect("b", func(context.Context, int, sqlstore.Dial) error { return nil }))
			c, err := h.Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Prepare(""); err.Error() != tt.want {
				t.Errorf("Connect uses host %v, want %q", err, tt.want)
			}
		})
	}
}

// Of hosts that take writes, one is left out whose timeline is lower than another's of the same origin, and connections
// from before a promotion are not used again.
func TestTimelines(t *testing.T) {
	hosts := map[string]*sqlstore.HostState{"a": {Writable: true}, "b": {Writable: true}, "c": {Writable: true}}
	open := func(names string) *sqlstore.Hosts {
		var all []sqlstore.Host
		for _, name := range strings.Split(names, ",") {
			all = append(all, sqlstore.Host{Name: name, Connect: func(context.Context, sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
				if hosts[name] == nil {
					return nil, sqlstore.HostState{}, errors.New("down")
				}
				return &fakeConn{host: name}, *hosts[name], nil
			}})
		}
		return sqlstore.NewHosts(time.Minute, all...)
	}
	set := func(name string, timeline uint64) {
		hosts[name] = &sqlstore.HostState{Writable: true, Timeline: timeline, Origin: "x"}
	}
	var last driver.Conn
	want := func(h *sqlstore.Hosts, name string) {
		t.Helper()
		c, err := h.Connect(t.Context())
		got := ""
		if err == nil {
			_, err = c.Prepare("")
			got, last = err.Error(), c
		} else if name == "" && !strings.Contains(err.Error(), "is a former primary") {
			t.Errorf("Connect = %v, want an error that says what it is", err)
		}
		if got != name {
			t.Errorf("Connect uses host %q, want %q", got, name)
		}
	}
	want(open("a,b,c"), "a") // unknown
	set("a", 1)
	set("b", 3)
	h := open("a,b")
	want(h, "b")         // found out at once
	want(open("a"), "a") // a single host is used whatever it is
	hosts["b"] = nil
	want(h, "") // remembered
	set("a", 3)
	want(h, "a")
	old := last
	hosts["b"], hosts["a"] = &sqlstore.HostState{Timeline: 4, Origin: "x"}, nil
	set("c", 3)
	want(open("c,b"), "") // a standby knows, too
	hosts["c"].Origin = "y"
	want(open("c,b"), "c") // a server of its own
	set("b", 4)
	want(h, "b")
	if err := old.(driver.SessionResetter).ResetSession(t.Context()); !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("a connection to the former primary: ResetSession = %v, want ErrBadConn", err)
	}
	if err := last.(driver.SessionResetter).ResetSession(t.Context()); err != nil {
		t.Errorf("a connection to the new one: ResetSession = %v", err)
	}
}

// Calls that meet at the start of a process wait until all hosts were asked, so that none of them uses a former primary.
// They are asked once, even if who asked first has left.
func TestTimelinesAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		surveys := 0 // calls that came before the answer
		former := func(context.Context, sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			return &fakeConn{host: "former"}, sqlstore.HostState{Writable: true, Timeline: 1, Origin: "x"}, nil
		}
		primary := func(ctx context.Context, _ sqlstore.Dial) (driver.Conn, sqlstore.HostState, error) {
			select {
			case <-answer:
			default:
				surveys++ // one goroutine does this, or the race detector says so
			}
			select {
			case <-answer:
			case <-ctx.Done():
				return nil, sqlstore.HostState{}, ctx.Err()
			}
			return &fakeConn{host: "primary"}, sqlstore.HostState{Writable: true, Timeline: 2, Origin: "x"}, nil
		}
		h := sqlstore.NewHosts(time.Minute, sqlstore.Host{Name: "former", Connect: former}, sqlstore.Host{Name: "primary", Connect: primary})

		impatient, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { _, err := h.Connect(impatient); left <- err }()
		synctest.Wait()
		const calls = 3
		used := make(chan string, calls)
		for range calls {
			go func() {
				c, err := h.Connect(t.Context())
				if err == nil {
					_, err = c.Prepare("") // which names the host
				}
				used <- err.Error()
			}()
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		select {
		case err := <-left:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Connect of who left = %v, want context.Canceled", err)
			}
		default:
			t.Error("Connect outlasts its context")
		}
		if n := len(used); n > 0 {
			t.Errorf("%d calls have a connection before the primary has answered", n)
		}
		if surveys != 1 {
			t.Errorf("the primary was asked %d times, want once", surveys)
		}
		close(answer)
		for range calls {
			if host := <-used; host != "primary" {
				t.Errorf("a call uses %s, want the primary", host)
			}
		}
	})
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = net.Dial("tcp", addr)
	if got, want := sqlstore.Unreachable(err, "mysqld"), addr+": connection refused; is mysqld running there?"; got != want {
		t.Errorf("Unreachable(%v) = %q, want %q", err, got, want)
	}
	if got := sqlstore.Unreachable(errors.New("x"), "mysqld"); got != "" {
		t.Errorf("Unreachable of another error = %q", got)
	}
}
