package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
)

// An operation is what a request does with its session.
type operation string

const (
	opNoCookie  operation = "no cookie"
	opUntouched operation = "untouched"
	opRead      operation = "read"
	opWrite     operation = "write"
	opTouch     operation = "touch due"
	opCreate    operation = "create"
	opRenew     operation = "renew"
	opEnd       operation = "end"
	// opMix reads in a GET and writes in a POST.
	opMix operation = "mix"
)

// operations are all of them.
var operations = []operation{opNoCookie, opUntouched, opRead, opWrite, opTouch, opCreate, opRenew, opEnd, opMix}

// consumes reports whether a request of this kind uses its cookie up.
func (o operation) consumes() bool { return o == opRenew || o == opEnd }

// setup returns how an app is set up for this kind of request.
func (o operation) setup(at server) setup {
	return setup{server: at, idle: o == opTouch || o == opMix, due: o == opTouch}
}

// A shape is how large a session is.
type shape struct {
	bytes  int // of all values together
	fields int
}

func (s shape) String() string {
	return fmt.Sprintf("%s, %d %s", kilobytes(s.bytes), s.fields, plural(s.fields, "field"))
}

func kilobytes(n int) string { return fmt.Sprintf("%.2g KB", float64(n)/1024) }

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

// field is the number of the field that requests read and write.
func (s shape) field() int { return s.fields / 2 }

// value returns a value of a field, another one for each of 256 successive n.
func (s shape) value(n int) string {
	size := max(s.bytes/s.fields, 2)
	return (fmt.Sprintf("%02x", byte(n)) + strings.Repeat("abcdefghijklmnop", size/16+1))[:size]
}

// firstValue is the number of the value that fields have at first. No request sets it.
const firstValue = 64

// values returns those that requests set.
func (s shape) values() (v [64]string) {
	for i := range v {
		v[i] = s.value(i)
	}
	return v
}

var body = []byte("<p>hello</p>")

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(body) // never fails, see response
}

// handler returns the app's middleware around a handler that does o and answers a few bytes.
func (a *app) handler(o operation, sh shape) http.Handler {
	values, field := sh.values(), sh.field()
	var writes atomic.Uint32
	read := func(w http.ResponseWriter, r *http.Request) {
		v, err := a.get(r, field)
		if err == nil && len(v) == 0 {
			err = fmt.Errorf("%s is empty", fieldName(field))
		}
		answer(w, err)
	}
	write := func(w http.ResponseWriter, r *http.Request) {
		answer(w, a.set(w, r, field, values[writes.Add(1)%64]))
	}
	var h http.HandlerFunc
	switch o {
	case opNoCookie, opUntouched:
		h = func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) }
	case opRead:
		h = read
	case opWrite, opCreate:
		h = write
	case opTouch:
		h = func(w http.ResponseWriter, r *http.Request) {
			if a.touch != nil {
				if err := a.touch(w, r); err != nil {
					answer(w, err)
					return
				}
			}
			read(w, r)
		}
	case opRenew:
		h = func(w http.ResponseWriter, r *http.Request) { answer(w, a.renew(r)) }
	case opEnd:
		h = func(w http.ResponseWriter, r *http.Request) { answer(w, a.end(w, r)) }
	case opMix:
		h = func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				write(w, r)
			} else {
				read(w, r)
			}
		}
	}
	return a.wrap(h)
}

// response is a ResponseWriter that sends nothing. It flushes, as those of net/http do.
type response struct {
	header http.Header
	status int
	text   []byte // of an error
}

func newResponse() *response { return &response{header: make(http.Header)} }

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) { w.status = status }

func (w *response) Write(b []byte) (int, error) {
	if w.status >= 400 {
		w.text = append(w.text, b...)
	}
	return len(b), nil
}

func (w *response) Flush() {}

// reset makes w the response to another request.
func (w *response) reset() {
	clear(w.header)
	w.status, w.text = 0, nil
}

// err returns an error if the response is one.
func (w *response) err() error {
	if w.status >= 400 {
		return fmt.Errorf("status %d: %s", w.status, strings.TrimSpace(string(w.text)))
	}
	return nil
}

// newRequest returns a request as net/http gives it to handlers, with the Cookie header cookie.
func newRequest(method, cookie string) *http.Request {
	// A server's request carries the server, and a context that can end. This one never does.
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), http.ServerContextKey, &http.Server{}))
	_ = cancel
	r := &http.Request{
		Method: method, URL: &url.URL{Path: "/"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Host: "example.com", RequestURI: "/", RemoteAddr: "192.0.2.1:1234", Body: http.NoBody,
		Header: http.Header{
			"User-Agent":      {"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
			"Accept":          {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
			"Accept-Language": {"en-US,en;q=0.5"},
			"Accept-Encoding": {"gzip, deflate, br"},
		},
	}
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	return r.WithContext(ctx)
}

// cookies returns the Cookie header of a browser that got w.
func (w *response) cookies() string {
	var pairs []string
	for _, line := range w.header["Set-Cookie"] {
		pair, _, _ := strings.Cut(line, ";")
		pairs = append(pairs, pair)
	}
	return strings.Join(pairs, "; ")
}

// serve has h answer r and returns the response, or what went wrong.
func serve(h http.Handler, r *http.Request) (*response, error) {
	w := newResponse()
	h.ServeHTTP(w, r)
	return w, w.err()
}

// sessions makes n sessions of a shape and returns the Cookie header of each.
func (a *app) sessions(n int, sh shape) ([]string, error) {
	fill := a.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.fill != nil {
			answer(w, a.fill(w, slices.Repeat([]string{sh.value(firstValue)}, sh.fields)))
			return
		}
		for i := range sh.fields {
			if err := a.set(w, r, i, sh.value(firstValue)); err != nil {
				answer(w, err)
				return
			}
		}
		answer(w, nil)
	}))
	list := make([]string, n)
	for i := range list {
		w, err := serve(fill, newRequest(http.MethodPost, ""))
		if err != nil {
			return nil, err
		}
		// gorilla answers every Save with a cookie: the last of a name counts.
		lines := w.header["Set-Cookie"]
		w.header["Set-Cookie"] = slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
			name, _, _ := strings.Cut(line, "=")
			for _, later := range slices.Backward(lines) {
				if strings.HasPrefix(later, name+"=") {
					return later != line
				}
			}
			return false
		})
		if list[i] = w.cookies(); list[i] == "" {
			return nil, errors.New("a request that sets fields got no cookie")
		}
	}
	return list, nil
}

// requests returns requests of a kind, of n sessions.
func (a *app) requests(o operation, sh shape, n int) ([]*http.Request, error) {
	method := http.MethodGet
	switch {
	case o == opNoCookie || o == opCreate:
		return []*http.Request{newRequest(method, "")}, nil
	case a.set == nil: // a row without sessions: the header is there all the same
		return []*http.Request{newRequest(method, "session=4Cj6ZjqUZJ3gTk1cTo0L0vvZ5d3m3aYvG3nCqf0wPzY")}, nil
	case o == opMix:
		return a.mixed(sh, n)
	}
	cookies, err := a.sessions(n, sh)
	requests := make([]*http.Request, len(cookies))
	for i, c := range cookies {
		requests[i] = newRequest(method, c)
	}
	return requests, err
}

// mixed returns requests to n sessions, every tenth of which writes.
func (a *app) mixed(sh shape, n int) ([]*http.Request, error) {
	cookies, err := a.sessions(n, sh)
	if err != nil {
		return nil, err
	}
	requests := make([]*http.Request, 10*n)
	for i := range requests {
		method := http.MethodGet
		if i%10 == i/max(n, 10) { // another tenth of the sessions in each round of them
			method = http.MethodPost
		}
		requests[i] = newRequest(method, cookies[i%n])
	}
	return requests, nil
}
