package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestKillServers is the promise of the project: servers, and the gateway twice, are killed and started again while
// requests come in, and the user stays logged in and every acknowledged visit is counted.
func TestKillServers(t *testing.T) {
	t.Parallel()
	for affinity, b := range map[string]breadth{"none": allOfThem, "cookie": fullStores} {
		t.Run("affinity-"+affinity, func(t *testing.T) {
			eachStore(t, b, func(t *testing.T, storeArgs []string, full bool) {
				d := mustDemo(t, append([]string{"--affinity", affinity}, storeArgs...)...)
				if err := killServers(t, d, full, killUsers); err != nil {
					t.Error(err)
				}
			})
		})
	}
	// Of visits at once a browser keeps one answer, if the session is in its cookie: one after the other, all are counted.
	for _, url := range []string{"cookie:", "jwt:"} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			if err := killServers(t, mustDemo(t, "--store", url, "--affinity", "none"), url == "cookie:", 1); err != nil {
				t.Error(err)
			}
		})
	}
	// Without a store that is shared, the same must fail, or it would prove nothing.
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		d := mustDemo(t, "--store", "memory:", "--affinity", "none")
		err := killServers(t, d, false, killUsers)
		if err == nil {
			t.Fatal("the login survived, and every visit was counted, without a shared store")
		}
		t.Logf("as it must be: %v", err)
	})
}

// killUsers is how many visits are under way at once.
const killUsers = 4

// killServers sends visits of one session, from so many users of it at once, while it kills and starts servers. It returns what was lost.
func killServers(t *testing.T, d *running, full bool, users int) error {
	visits, steps := 240, 12
	if full {
		visits, steps = testserver.Scale(1000, 2000), testserver.Scale(50, 100)
	}
	k := &killing{d: d, b: newBrowser(t, d.url), apps: []string{"app-1", "app-2", "app-3"}, failures: make(map[string]int)}
	k.me = k.b.mustLogin(t, "ada")

	readCtx, stopReading := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() { k.read(readCtx) })
	}
	up := map[string]bool{"app-1": true, "app-2": true, "app-3": true}
	for step := range steps {
		var sent sync.WaitGroup
		batch := visits / steps
		progress := make(chan struct{}, batch)
		work := make(chan struct{}, batch)
		for range batch {
			work <- struct{}{}
		}
		close(work)
		for range users {
			sent.Go(func() {
				for range work {
					k.visit(t.Context())
					progress <- struct{}{}
				}
			})
		}
		for range rand.IntN(batch) {
			<-progress
		}
		if step == steps/3 || step == 2*steps/3 {
			k.killGateway(t)
		} else {
			k.killOrStart(t, up)
		}
		sent.Wait()
	}
	stopReading()
	readers.Wait()
	for _, app := range k.apps {
		k.start(t, app)
	}
	last := k.b.must(t, "GET", "/whoami", nil)
	ok, failed := int(k.ok.Load()), int(k.failed.Load())
	t.Logf("%d visits answered 200, %d failed (%v), counter %d; %d reads, %d kills", ok, failed, k.failures, last.Visits, k.reads.Load(), k.kills)
	if last.User != k.me.User || last.Session != k.me.Session {
		k.lose(fmt.Errorf("at the end: user %q in session %q, want %q in %q", last.User, last.Session, k.me.User, k.me.Session))
	}
	if last.Visits < ok || last.Visits > ok+failed {
		k.lose(fmt.Errorf("at the end: %d visits counted, want %d that were answered 200, and at most %d more that failed", last.Visits, ok, failed))
	}
	if ok < visits/2 || k.kills < steps/4 {
		t.Errorf("%d of %d visits failed in %d kills: that proves little", failed, visits, k.kills)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return errors.Join(k.losses...)
}

type killing struct {
	d    *running
	b    *browser
	me   who // after the login
	apps []string

	ok, failed, reads atomic.Int64 // visits answered 200, and not; reads
	outages           atomic.Int64 // of the gateway: odd while it is down
	kills             int

	mu sync.Mutex

	// mu guards the fields below.
	losses   []error // the first few
	failures map[string]int
}

func (k *killing) lose(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.losses) < 5 {
		k.losses = append(k.losses, err)
	}
}

// visit sends one visit, which may fail: the server, or the gateway, may be killed over it.
func (k *killing) visit(ctx context.Context) {
	r, err := k.b.do(ctx, "POST", "/visit", nil, nil)
	if err == nil && r.status == http.StatusOK {
		k.ok.Add(1)
		return
	}
	k.failed.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.failures["no answer"]++
	} else {
		k.failures[http.StatusText(r.status)]++
	}
}

// read asks who we are, until ctx ends. While the gateway is up that never fails, and every answer knows the login and
// all visits that were acknowledged before.
func (k *killing) read(ctx context.Context) {
	for ctx.Err() == nil {
		before, outages := k.ok.Load(), k.outages.Load()
		w, err := k.b.ask(ctx, "GET", "/whoami", nil)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && outages%2 == 0 && outages == k.outages.Load():
			k.lose(fmt.Errorf("GET /whoami while the gateway was up: %w", err))
		case err != nil:
		case w.User != k.me.User || w.Session != k.me.Session:
			k.lose(fmt.Errorf("%s says: user %q in session %q, want %q in %q", w.App, w.User, w.Session, k.me.User, k.me.Session))
		case int64(w.Visits) < before:
			k.lose(fmt.Errorf("%s says: %d visits, want at least the %d acknowledged before", w.App, w.Visits, before))
		}
		k.reads.Add(1)
	}
}

// killOrStart kills a server, or starts one that was killed. One stays up.
func (k *killing) killOrStart(t *testing.T, up map[string]bool) {
	t.Helper()
	app := k.apps[rand.IntN(len(k.apps))]
	living := 0
	for _, is := range up {
		if is {
			living++
		}
	}
	switch {
	case up[app] && living > 1:
		k.d.kill(t, app)
		k.kills++
		up[app] = false
	case !up[app]:
		k.start(t, app)
		up[app] = true
	}
}

// start starts a server, which may just have been killed, so that the demo does not know yet.
func (k *killing) start(t *testing.T, app string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		r, err := k.b.do(t.Context(), "POST", "/demo/apps/"+app+"/start", url.Values{}, nil)
		if err == nil && r.status != http.StatusOK {
			err = fmt.Errorf("start %s: status %d: %s", app, r.status, r.body)
		}
		if err == nil && !alive(k.d.pid(app)) {
			err = fmt.Errorf("%s is not up", app)
		}
		return err
	})
}

// killGateway kills the gateway and waits for the next one.
func (k *killing) killGateway(t *testing.T) {
	t.Helper()
	old := k.d.pid("gateway")
	k.outages.Add(1)
	k.d.kill(t, "gateway")
	k.kills++
	eventually(t, 30*time.Second, func() error {
		if k.d.pid("gateway") == old {
			return errors.New("the gateway was not started again")
		}
		return nil
	})
	k.outages.Add(1)
}
