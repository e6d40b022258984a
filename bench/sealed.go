package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// sealer is one way to make the value of a cookie from a session of ten fields.
type sealer struct {
	name  string
	write func(value string) (token string, err error) // sets one field
	read  func(token string) (value string, err error) // reads that field
}

const (
	secureGobName  = "securecookie (gob)"
	secureJSONName = "securecookie (JSON)"

	sealedFields = 10
	sealedField  = 3 // which is set and read
)

func sealedValue(size, i int) string {
	return strings.Repeat(string(rune('a'+i)), size/sealedFields-len("field0"))
}

// sealers returns the contenders for a session whose names and values have size bytes together.
func sealers(size int) ([]sealer, error) {
	hash, block := securecookie.GenerateRandomKey(64), securecookie.GenerateRandomKey(32)
	all := make([]string, sealedFields)
	values := map[string]string{"user": "ada"} // as an application keeps its user
	rec := driver.Record{User: "ada", Created: time.Now(), Seen: time.Now(), Expires: time.Now().Add(time.Hour), Revision: driver.NewRevision(0)}
	for i := range sealedFields {
		name, value := fieldName(i), sealedValue(size, i)
		all[i], values[name] = value, value
		rec.Fields = rec.Fields.With(driver.Change{Name: name, Value: []byte(`"` + value + `"`)})
	}
	secure := func(name string, s securecookie.Serializer) sealer {
		c := securecookie.New(hash, block).SetSerializer(s).MaxLength(0)
		return sealer{name, func(value string) (string, error) {
			values[fieldName(sealedField)] = value
			return c.Encode("session", values)
		}, func(token string) (string, error) {
			var m map[string]string
			err := c.Decode("session", token, &m)
			return m[fieldName(sealedField)], err
		}}
	}
	keys := keyring.New(keyring.NewSet())
	asCookie, err := cookie.New(keys, cookie.Config{Application: "shop"})
	if err != nil {
		return nil, err
	}
	asJWT, err := jwt.New(keys, jwt.Config{Issuer: "https://shop.example", Audience: "shop"})
	if err != nil {
		return nil, err
	}
	sealed := func(name string, s driver.Sealer, used int) sealer {
		return sealer{name, func(value string) (string, error) {
			changes := make([]driver.Change, 0, used)
			for i := range used {
				n := (sealedField + i) % sealedFields
				if i > 0 {
					value = all[n]
				}
				b, err := fields[n].Encode(value)
				if err != nil {
					return "", err
				}
				changes = append(changes, driver.Change{Name: fieldName(n), Value: b})
			}
			next := rec
			next.Fields = rec.Fields.With(changes...)
			return s.Seal("session", driver.ID{1}, next)
		}, func(token string) (value string, err error) {
			o, err := s.Open("session", token)
			for i := range used {
				n := (sealedField + i) % sealedFields
				b, _ := o.Record.Fields.Get(fieldName(n))
				text, wrong := fields[n].Decode(b)
				if i == 0 {
					value = text
				}
				err = cmp.Or(err, wrong)
			}
			return value, err
		}}
	}
	return []sealer{
		sealed("holdfast cookie", asCookie, 1),
		sealed("holdfast cookie, all fields used", asCookie, sealedFields),
		sealed("holdfast jwt", asJWT, 1),
		secure(secureGobName, securecookie.GobEncoder{}),
		secure(secureJSONName, securecookie.JSONEncoder{}),
	}, nil
}

// sealedLibraries are those that keep a session in its cookie, encrypted, for whole requests.
var sealedLibraries = []library{
	{name: "holdfast", can: everything, open: func(setup) (*app, error) { return openSealed() }},
	{name: "holdfast, all fields used", can: everything, open: func(setup) (*app, error) {
		a, err := openSealed()
		if err != nil {
			return nil, err
		}
		get, set := a.get, a.set
		a.get = func(r *http.Request, field int) (string, error) {
			var errs error
			for i := range sealedFields {
				_, err := get(r, i)
				errs = errors.Join(errs, err)
			}
			value, err := get(r, field)
			return value, errors.Join(errs, err)
		}
		a.set = func(w http.ResponseWriter, r *http.Request, _ int, value string) error {
			for i := range sealedFields {
				if err := set(w, r, i, value); err != nil {
					return err
				}
			}
			return nil
		}
		return a, nil
	}},
	{name: secureGobName, can: everything, open: func(setup) (*app, error) { return secureApp(securecookie.GobEncoder{}), nil }},
	{name: secureJSONName, can: everything, open: func(setup) (*app, error) { return secureApp(securecookie.JSONEncoder{}), nil }},
	{name: "sessions.CookieStore", can: everything, open: func(setup) (*app, error) {
		store := sessions.NewCookieStore(securecookie.GenerateRandomKey(64), securecookie.GenerateRandomKey(32))
		for _, c := range store.Codecs {
			c.(*securecookie.SecureCookie).MaxLength(0)
		}
		return gorillaApp(store), nil
	}},
}

// secureApp keeps the session in a map, as securecookie's documentation does: a handler decodes the cookie, and sets it.
func secureApp(s securecookie.Serializer) *app {
	c := securecookie.New(securecookie.GenerateRandomKey(64), securecookie.GenerateRandomKey(32)).SetSerializer(s).MaxLength(0)
	c.MaxAge(int(lifetime / time.Second))
	load := func(r *http.Request) (map[string]string, error) {
		kept, err := r.Cookie(gorillaCookie)
		if err != nil {
			return make(map[string]string), nil // there is none
		}
		var values map[string]string
		return values, c.Decode(gorillaCookie, kept.Value, &values)
	}
	set := func(w http.ResponseWriter, values map[string]string) error {
		encoded, err := c.Encode(gorillaCookie, values)
		if err != nil {
			return err
		}
		http.SetCookie(w, &http.Cookie{Name: gorillaCookie, Value: encoded, Path: "/", MaxAge: int(lifetime / time.Second), Secure: true, HttpOnly: true})
		return nil
	}
	return &app{
		wrap: func(h http.Handler) http.Handler { return h },
		get: func(r *http.Request, field int) (string, error) {
			values, err := load(r)
			return values[fieldName(field)], err
		},
		set: func(w http.ResponseWriter, r *http.Request, field int, value string) error {
			values, err := load(r)
			if err != nil {
				return err
			}
			values[fieldName(field)] = value
			return set(w, values)
		},
		fill: func(w http.ResponseWriter, all []string) error {
			values := make(map[string]string)
			for i, v := range all {
				values[fieldName(i)] = v
			}
			return set(w, values)
		},
		close: func() {},
	}
}

func openSealed() (*app, error) {
	s, err := cookie.New(keyring.New(keyring.NewSet()), cookie.Config{Application: "shop"})
	if err != nil {
		return nil, err
	}
	// Without user records, of which there are none before a login.
	m, err := holdfast.NewSealed(s, nil, holdfast.Config{Lifetime: lifetime, IdleTimeout: idleTimeout, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return holdfastApp(m), nil
}

// sealedRow is what one contender takes.
type sealedRow struct {
	name        string
	bytes       int // of the value, or of the Cookie header
	read, write *contender
}

// printSealed compares what it costs to keep a session in its cookie: what it takes to make the cookie's value after one of
// ten fields was set, and to read a field from it; and whole requests that do so.
func printSealed(out io.Writer, e effort) ([]bar, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var bars []bar
	for _, size := range []int{1 << 10, 3584} {
		title := fmt.Sprintf("A session in its cookie, %.1f KB in ten fields: ", float64(size)/1024)
		values, err := measureSealers(size, e)
		if err != nil {
			return nil, err
		}
		printSealedRows(out, title+"the cookie's value", values)
		requests, err := measureSealedRequests(size, e)
		if err != nil {
			return nil, err
		}
		printSealedRows(out, title+"a whole request", requests)
		for i, rows := range [][]sealedRow{values, requests} {
			of := [2]string{"value", "request"}[i]
			for _, r := range rows {
				if strings.HasPrefix(r.name, "holdfast") {
					continue
				}
				what := fmt.Sprintf("%.1f KB in its cookie, %s: %s takes times the ", float64(size)/1024, of, r.name)
				bars = append(bars,
					bar{what + "bytes", float64(r.bytes) / float64(rows[0].bytes), 1, false, true},
					bar{what + "CPU of a read", r.read.times(rows[0].read, cpuOf), 3, false, false},
					bar{what + "CPU of a write", r.write.times(rows[0].write, cpuOf), 3, false, false})
			}
		}
	}
	return bars, nil
}

func printSealedRows(out io.Writer, title string, rows []sealedRow) {
	g := newGrid(out, title, "", "bytes", "read, CPU µs", "times", "B", "allocs", "write, CPU µs", "times", "B", "allocs")
	for _, r := range rows {
		cells := []string{r.name, fmt.Sprint(r.bytes)}
		for _, c := range [][2]*contender{{r.read, rows[0].read}, {r.write, rows[0].write}} {
			cells = append(cells, microseconds(c[0].median(cpuOf)), factor(c[0], c[1], cpuOf),
				fmt.Sprintf("%.0f", c[0].median(bytesOf)), fmt.Sprintf("%.0f", c[0].median(allocsOf)))
		}
		g.row(cells...)
	}
	g.flush()
}

func measureSealers(size int, e effort) ([]sealedRow, error) {
	all, err := sealers(size)
	if err != nil {
		return nil, err
	}
	want := sealedValue(size, sealedField)
	rows := make([]sealedRow, len(all))
	tokens := make([]string, len(all))
	for i, s := range all {
		token, err := s.write(want)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if got, err := s.read(token); err != nil || got != want {
			return nil, fmt.Errorf("%s: reads another value than was written: %w", s.name, err)
		}
		tokens[i], rows[i] = token, sealedRow{s.name, len(token), new(contender), new(contender)}
	}
	sample := func(c *contender, call func()) {
		runtime.GC()
		n, m := 0, start()
		for time.Since(m.began) < e.sample {
			for range 10 {
				call()
			}
			n += 10
		}
		c.samples = append(c.samples, m.stop(n))
	}
	for range e.rounds {
		for i, s := range all { // each was tried above
			sample(rows[i].read, func() { _, _ = s.read(tokens[i]) })
			sample(rows[i].write, func() { _, _ = s.write(want) })
		}
	}
	return rows, nil
}

func measureSealedRequests(size int, e effort) ([]sealedRow, error) {
	sh := shape{size - sealedFields*len("field0"), sealedFields}
	read := compare(sealedLibraries, load{operation: opRead, shape: sh}, e)
	write := compare(sealedLibraries, load{operation: opWrite, shape: sh}, e)
	rows := make([]sealedRow, len(sealedLibraries))
	for i, lib := range sealedLibraries {
		if err := errors.Join(read[i].err, write[i].err); err != nil {
			return nil, fmt.Errorf("%s: %w", lib.name, err)
		}
		a, err := lib.open(setup{})
		if err != nil {
			return nil, err
		}
		cookies, err := a.sessions(1, sh)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", lib.name, err)
		}
		rows[i] = sealedRow{lib.name, len(cookies[0]), read[i], write[i]}
	}
	return rows, nil
}
