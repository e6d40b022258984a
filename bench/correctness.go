package main

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"sync"
)

// damage is what a library does to sessions when requests overlap.
type damage struct {
	writers     int
	lostFields  int // of that many writers of different fields of one session
	lostCounts  int // of that many increments of one counter
	logouts     int
	undone      int // of that many logouts, by a request that began before and ended after
	stolenAlive int // of that many logouts, after which the cookie from before still works
}

// A browser keeps cookies. Its methods may be called concurrently.
type browser struct {
	jar  http.CookieJar
	site *url.URL
}

func newBrowser() browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err) // never, without options
	}
	return browser{jar, &url.URL{Scheme: "https", Host: "example.com", Path: "/"}}
}

// cookie is the Cookie header that the browser sends.
func (b browser) cookie() string {
	r := http.Request{Header: make(http.Header)}
	for _, c := range b.jar.Cookies(b.site) {
		r.AddCookie(c)
	}
	return r.Header.Get("Cookie")
}

// do has h answer a request of the browser.
func (b browser) do(h http.Handler) error { return b.doWith(h, b.cookie()) }

func (b browser) doWith(h http.Handler, cookie string) error {
	w, err := serve(h, newRequest(http.MethodPost, cookie))
	b.jar.SetCookies(b.site, (&http.Response{Header: w.header}).Cookies())
	return err
}

// handle returns the app's middleware around f.
func (a *app) handle(f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return a.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := f(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(body) // never fails, see response
	}))
}

// harm tries what a library does to sessions when requests overlap.
func harm(lib library, at server) (damage, error) {
	d := damage{writers: 50, logouts: 20}
	a, err := lib.open(setup{server: at})
	if err != nil {
		return d, err
	}
	defer a.close()
	if d.lostFields, err = lostFields(a, d.writers); err != nil {
		return d, fmt.Errorf("writers of different fields: %w", err)
	}
	if d.lostCounts, err = lostCounts(a, d.writers); err != nil {
		return d, fmt.Errorf("writers of one counter: %w", err)
	}
	for range d.logouts {
		undone, alive, err := undoneLogout(a)
		if err != nil {
			return d, fmt.Errorf("logout: %w", err)
		}
		if undone {
			d.undone++
		}
		if alive {
			d.stolenAlive++
		}
	}
	return d, nil
}

// begin starts a session with field 0 set.
func begin(a *app) (browser, error) {
	b := newBrowser()
	return b, b.do(a.handle(func(w http.ResponseWriter, r *http.Request) error { return a.set(w, r, 0, "alice") }))
}

// lostFields has n requests, all of which have loaded the session before the first writes, set a field each, and
// returns how many of the fields are not there afterwards.
func lostFields(a *app, n int) (int, error) {
	b, err := begin(a)
	if err != nil {
		return 0, err
	}
	err = overlap(b, n, func(i int, loaded func()) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := a.get(r, 0); err != nil {
				return err
			}
			loaded()
			return a.set(w, r, i+1, "written")
		})
	})
	if err != nil {
		return 0, err
	}
	lost := 0
	err = b.do(a.handle(func(_ http.ResponseWriter, r *http.Request) error {
		for i := range n {
			v, err := a.get(r, i+1)
			if err != nil {
				return err
			}
			if v != "written" {
				lost++
			}
		}
		return nil
	}))
	return lost, err
}

// lostCounts is lostFields for a counter that all of them add to.
func lostCounts(a *app, n int) (int, error) {
	b, err := begin(a)
	if err != nil {
		return 0, err
	}
	err = overlap(b, n, func(_ int, loaded func()) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := a.get(r, 0); err != nil {
				return err
			}
			loaded()
			return a.add(w, r)
		})
	})
	if err != nil {
		return 0, err
	}
	var count int
	err = b.do(a.handle(func(_ http.ResponseWriter, r *http.Request) (err error) {
		count, err = a.count(r)
		return err
	}))
	return n - count, err
}

// overlap runs n requests of one browser. The func that each handler is made with waits until all have called it.
func overlap(b browser, n int, handler func(i int, loaded func()) http.Handler) error {
	var arrived sync.WaitGroup
	arrived.Add(n)
	failures := make(chan error, n)
	cookie := b.cookie()
	for i := range n {
		once := sync.OnceFunc(arrived.Done)
		go func() {
			defer once() // also if it failed before
			failures <- b.doWith(handler(i, func() { once(); arrived.Wait() }), cookie)
		}()
	}
	var err error
	for range n {
		if e := <-failures; e != nil {
			err = e
		}
	}
	return err
}

// undoneLogout logs out while another request of the session runs, which sets a field at its end. It reports whether
// the browser is logged in afterwards, and whether somebody is who has kept the cookie.
func undoneLogout(a *app) (undone, alive bool, err error) {
	b, err := begin(a)
	if err != nil {
		return false, false, err
	}
	before := b.cookie()
	var logout error
	slow := a.handle(func(w http.ResponseWriter, r *http.Request) error {
		if _, err := a.get(r, 0); err != nil {
			return err
		}
		logout = b.doWith(a.handle(a.end), before)
		_ = a.set(w, r, 1, "late") // refusing it is right
		return nil
	})
	_ = b.doWith(slow, before) // an error is right, too
	if logout != nil {
		return false, false, logout
	}
	user, err := a.user(b.cookie())
	if err != nil {
		return false, false, err
	}
	thief, err := a.user(before)
	return user != "", thief != "", err
}

// user returns field 0 of the session that a cookie names.
func (a *app) user(cookie string) (user string, err error) {
	_, err = serve(a.handle(func(_ http.ResponseWriter, r *http.Request) (err error) {
		user, err = a.get(r, 0)
		return err
	}), newRequest(http.MethodGet, cookie))
	return user, err
}
