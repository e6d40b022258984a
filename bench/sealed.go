package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/gorilla/sessions"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
	"github.com/holdfast-sessions/holdfast/sealed/jwt"
)

// sealer is one way to keep a session of ten fields in its cookie.
type sealer struct {
	name  string
	write func(value string) (token string, err error) // sets one field
	read  func(token string) (value string, err error) // reads that field
}

const sealedFields = 10

func sealedValue(size, i int) string {
	return strings.Repeat(string(rune('a'+i)), size/sealedFields-len("field0"))
}

// sealers returns the contenders for a session whose names and values have size bytes together.
func sealers(size int) ([]sealer, error) {
	hash, block := securecookie.GenerateRandomKey(64), securecookie.GenerateRandomKey(32)
	values := make(map[string]string)
	rec := driver.Record{User: "ada", Created: time.Now(), Seen: time.Now(), Expires: time.Now().Add(time.Hour), Revision: driver.NewRevision(0)}
	for i := range sealedFields {
		name, value := fmt.Sprint("field", i), sealedValue(size, i)
		values[name] = value
		rec.Fields = rec.Fields.With(driver.Change{Name: name, Value: []byte(`"` + value + `"`)})
	}
	withUser := func() map[string]string { // as an application keeps its user
		m := map[string]string{"user": "ada"}
		for k, v := range values {
			m[k] = v
		}
		return m
	}
	secure := func(name string, s securecookie.Serializer) sealer {
		c := securecookie.New(hash, block).SetSerializer(s).MaxLength(0)
		m := withUser()
		return sealer{name, func(value string) (string, error) {
			m["field3"] = value
			return c.Encode("session", m)
		}, func(token string) (string, error) {
			var m map[string]string
			err := c.Decode("session", token, &m)
			return m["field3"], err
		}}
	}
	store := sessions.NewCookieStore(hash, block)
	for _, c := range store.Codecs {
		c.(*securecookie.SecureCookie).MaxLength(0)
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
	sealed := func(name string, s driver.Sealer, all bool) sealer {
		return sealer{name, func(value string) (string, error) {
			changes := make([]driver.Change, 0, sealedFields)
			set := func(name, value string) error {
				b, err := json.Marshal(value)
				changes = append(changes, driver.Change{Name: name, Value: b})
				return err
			}
			if all {
				for name, value := range values {
					if err := set(name, value); err != nil {
						return "", err
					}
				}
			}
			err := set("field3", value)
			next := rec
			next.Fields = rec.Fields.With(changes...)
			if err != nil {
				return "", err
			}
			return s.Seal("session", driver.ID{1}, next)
		}, func(token string) (value string, err error) {
			o, err := s.Open("session", token)
			for name, v := range o.Record.Fields.All() {
				if err == nil && (all || name == "field3") {
					var text string
					if err = json.Unmarshal(v, &text); name == "field3" {
						value = text
					}
				}
			}
			return value, err
		}}
	}
	return []sealer{
		sealed("holdfast cookie", asCookie, false),
		sealed("holdfast cookie, all fields used", asCookie, true),
		sealed("holdfast jwt", asJWT, false),
		secure("securecookie (gob)", securecookie.GobEncoder{}),
		secure("securecookie (JSON)", securecookie.JSONEncoder{}),
		{"sessions.CookieStore", func(value string) (string, error) {
			r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
			s, err := store.New(r, "session")
			if err != nil {
				return "", err
			}
			for name, v := range withUser() {
				s.Values[name] = v
			}
			s.Values["field3"] = value
			if err := store.Save(r, w, s); err != nil {
				return "", err
			}
			return w.Result().Cookies()[0].Value, nil
		}, func(token string) (string, error) {
			r := &http.Request{Header: http.Header{"Cookie": {"session=" + token}}}
			s, err := store.New(r, "session")
			if err != nil {
				return "", err
			}
			value, _ := s.Values["field3"].(string)
			return value, nil
		}},
	}, nil
}

// printSealed compares what it costs to keep a session in its cookie: what it takes to make the cookie's value after one of
// ten fields was set, and to read a field from it.
func printSealed(out io.Writer, e effort) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, size := range []int{1 << 10, 3584} {
		all, err := sealers(size)
		if err != nil {
			return err
		}
		want := sealedValue(size, 3)
		cpu := make(map[string][2][]float64)
		bytes := make(map[string]int)
		for _, s := range all {
			token, err := s.write(want)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if got, err := s.read(token); err != nil || got != want {
				return fmt.Errorf("%s: reads another value than was written: %w", s.name, err)
			}
			bytes[s.name] = len(token)
		}
		for range e.rounds {
			for _, s := range all {
				token, _ := s.write(want) // tried above
				c := cpu[s.name]
				for i, call := range []func(){func() { _, _ = s.read(token) }, func() { _, _ = s.write(want) }} {
					n, m := 0, start()
					for time.Since(m.began) < e.sample {
						for range 10 {
							call()
						}
						n += 10
					}
					c[i] = append(c[i], cpuOf(m.stop(n)))
				}
				cpu[s.name] = c
			}
		}
		base := cpu[all[0].name]
		g := newGrid(out, fmt.Sprintf("A session in its cookie: %.1f KB in ten fields", float64(size)/1024), "", "bytes of the value", "read, µs", "times", "write, µs", "times")
		for _, s := range all {
			read, write := median(cpu[s.name][0]), median(cpu[s.name][1])
			g.row(s.name, fmt.Sprint(bytes[s.name]), microseconds(read), number(read/median(base[0])), microseconds(write), number(write/median(base[1])))
		}
		g.flush()
	}
	return nil
}
