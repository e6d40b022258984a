// Package sealtest proves that a sealer keeps the contract of driver.Sealer, and that it withstands what a client can do to
// a token: numbers in comments are those of the attacks.
//
//	func TestSealer(t *testing.T) {
//		sealtest.Run(t, func(keys *keyring.Ring, s sealtest.Settings) (driver.Sealer, error) {
//			return cookie.New(keys, cookie.Config{Application: s.Application, Purpose: s.Purpose, MaxBytes: s.MaxBytes})
//		})
//	}
package sealtest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
)

// Settings are what the suite varies. Two sealers of which one differs refuse each other's tokens, MaxBytes excepted.
type Settings struct {
	Application string
	Purpose     string
	MaxBytes    int // 0: the sealer's default
}

// New makes a sealer. It is called many times.
type New func(keys *keyring.Ring, s Settings) (driver.Sealer, error)

// Run runs the suite.
func Run(t *testing.T, n New) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.bubble {
				synctest.Test(t, func(t *testing.T) { c.run(t, n) })
			} else {
				c.run(t, n)
			}
		})
	}
}

type testCase struct {
	name   string
	run    func(testing.TB, New)
	bubble bool // of testing/synctest
}

var cases = []testCase{
	{"identity", identity, false},
	{"alphabet", alphabet, false},
	{"changed", changed, false},
	{"cut and extended", extended, false},
	{"elsewhere", elsewhere, false},
	{"keys", keys, false},
	{"rotation", rotation, false},
	{"size", size, false},
	{"length", length, false},
	{"hostile", hostile, false},
	{"memory", memory, false},
	{"concurrent", concurrent, false},
	{"expiry", expiry, true},
	{"prints nothing", printsNothing, false},
}

const binding = "__Host-Http-session\x00tenant"

func (n New) must(t testing.TB, keys *keyring.Ring, s Settings) driver.Sealer {
	t.Helper()
	if s.Application == "" {
		s.Application = "shop"
	}
	if s.Purpose == "" {
		s.Purpose = "session"
	}
	sealer, err := n(keys, s)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return sealer
}

func (n New) plain(t testing.TB) driver.Sealer {
	t.Helper()
	return n.must(t, keyring.New(keyring.NewSet()), Settings{})
}

// record returns one of the usual kind.
func record(fields ...driver.Change) driver.Record {
	now := time.Now().Truncate(time.Millisecond)
	return driver.Record{
		User: "ada", Created: now.Add(-time.Hour), Seen: now.Add(-time.Minute), Expires: now.Add(time.Hour),
		Revision: driver.NewRevision(0), Fields: driver.Fields{}.With(fields...),
	}
}

func set(name, value string) driver.Change { return driver.Change{Name: name, Value: []byte(value)} }

func mustSeal(t testing.TB, s driver.Sealer, id driver.ID, rec driver.Record) string {
	t.Helper()
	token, err := s.Seal(binding, id, rec)
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return token
}

func mustOpen(t testing.TB, s driver.Sealer, token string) driver.Opened {
	t.Helper()
	o, err := s.Open(binding, token)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return o
}

// wantRefused opens a token that is none.
func wantRefused(t testing.TB, s driver.Sealer, binding, token, what string) {
	t.Helper()
	o, err := s.Open(binding, token)
	if !errors.Is(err, driver.ErrTampered) && !errors.Is(err, driver.ErrForeignSeal) {
		t.Errorf("%s: Open = %v, want ErrTampered or ErrForeignSeal", what, err)
	}
	if o.ID != (driver.ID{}) || o.Record.User != "" || o.Record.Fields.Len() > 0 {
		t.Errorf("%s: Open returned a record", what)
	}
}

// same says how got differs from want, or "".
func same(gotID driver.ID, got driver.Record, wantID driver.ID, want driver.Record) string {
	switch {
	case gotID != wantID:
		return "another ID"
	case got.User != want.User:
		return fmt.Sprintf("user %q, want %q", got.User, want.User)
	case !got.Created.Equal(want.Created), !got.Seen.Equal(want.Seen), !got.Expires.Equal(want.Expires):
		return fmt.Sprintf("times %v %v %v, want %v %v %v", got.Created, got.Seen, got.Expires, want.Created, want.Seen, want.Expires)
	case got.Revision != want.Revision:
		return fmt.Sprintf("revision %d, want %d", got.Revision, want.Revision)
	case !got.Fields.Equal(want.Fields):
		return fmt.Sprintf("fields %q, want %q", got.Fields.Bytes(), want.Fields.Bytes())
	}
	return ""
}

// What Seal was given is what Open returns, whatever is in it.
func identity(t testing.TB, n New) {
	s := n.must(t, keyring.New(keyring.NewSet()), Settings{MaxBytes: 64 << 10})
	check := func(t rapid.TB, id driver.ID, rec driver.Record) {
		token, err := s.Seal(binding, id, rec)
		if err != nil {
			t.Fatalf("Seal: %v", err)
		}
		o, err := s.Open(binding, token)
		if rec.Expired(time.Now()) {
			if !errors.Is(err, driver.ErrGone) {
				t.Fatalf("Open, expired = %v, want ErrGone", err)
			}
		} else if err != nil {
			t.Fatalf("Open: %v", err)
		}
		if diff := same(o.ID, o.Record, id, rec); diff != "" {
			t.Fatalf("Open(Seal(x)) has %s", diff)
		}
		if o.Stale {
			t.Fatalf("a new token is stale")
		}
	}
	check(t, driver.ID{}, driver.Record{})
	check(t, driver.ID{1}, record())
	check(t, driver.ID{255}, record(set("", ""), set("\x00own", "\xff\x00"), set("a", `{"b":[1,2,{"c":"\u0000"}]}`), set("\xff", "1"), set("c", " 1 "),
		set("d", `"<&>\u2028"`), set("e", "1e400"), set("f", "\"\xff\""), set("g", strings.Repeat("[", 40)+strings.Repeat("]", 40)), set("h\u2028<\"\\", "null")))
	for _, ms := range []int64{-1, 1, -62135596800001, 253402300800000, 1<<63 - 1, -1 << 63} {
		rec := record()
		rec.Created = time.UnixMilli(ms)
		if rec.Created.UnixMilli() == ms {
			check(t, driver.ID{}, rec)
		}
	}
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		ms := rapid.Int64Range(-1<<45, 1<<45).Draw(t, "ms")
		if ms == 0 { // which stands for it
			return time.Time{}
		}
		return time.UnixMilli(ms)
	})
	text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	value := rapid.OneOf(text, rapid.SampledFrom([]string{`null`, `[]`, `{"a":{}}`, `"ü"`, `-0.5e-3`, `{"a":1,"a":2}`, "[1]\n", `"\ud800"`}))
	prop := func(t *rapid.T) {
		rec := driver.Record{
			User: text.Draw(t, "user"), Created: moment.Draw(t, "created"), Seen: moment.Draw(t, "seen"), Expires: moment.Draw(t, "expires"),
			Revision: rapid.Uint64().Draw(t, "revision"),
		}
		if rapid.Bool().Draw(t, "later") {
			rec.Expires = time.Now().Add(time.Hour).Truncate(time.Millisecond)
		}
		for range rapid.IntRange(0, 8).Draw(t, "fields") {
			name := text.Draw(t, "name")
			if rapid.Bool().Draw(t, "own") {
				name = "\x00" + name
			}
			rec.Fields = rec.Fields.With(driver.Change{Name: name, Value: []byte(value.Draw(t, "value"))})
		}
		var id driver.ID
		copy(id[:], rapid.SliceOfN(rapid.Byte(), len(id), len(id)).Draw(t, "id"))
		check(t, id, rec)
	}
	rapid.Check(t, prop)
}

// A token can be a cookie's value, and be split over several.
func alphabet(t testing.TB, n New) {
	s := n.plain(t)
	for i := range 50 {
		token := mustSeal(t, s, driver.ID{byte(i)}, record(set("a", strings.Repeat("x", i))))
		if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") != "" ||
			strings.HasPrefix(token, ".") || strings.HasSuffix(token, ".") || strings.ContainsAny(token, ",; \"\\") {
			t.Fatalf("a token has characters that no cookie may have, or a dot at an end")
		}
	}
	d := s.Describe()
	if d.Name == "" || !d.Shared || !d.Immediate || d.MaxBytes < 1024 {
		t.Errorf("Describe = %+v", d)
	}
}

// Attack 8: one bit flipped at every position. Characters that no encoding has come of it too, and in the last place of a part,
// bits that stand for nothing.
func changed(t testing.TB, n New) {
	s := n.plain(t)
	for _, rec := range []driver.Record{{Expires: time.Now().Add(time.Hour)}, record(set("a", `"x"`)), record(set("a", `"xy"`), set("\x00b", "z"))} {
		token := []byte(mustSeal(t, s, driver.ID{7}, rec))
		for i, c := range token {
			for bit := range 8 {
				token[i] = c ^ 1<<bit
				wantRefused(t, s, binding, string(token), fmt.Sprintf("bit %d of character %d of %d flipped", bit, i, len(token)))
			}
			token[i] = c
		}
		for _, i := range places(token) {
			c := token[i]
			for other := range 256 {
				if token[i] = byte(other); token[i] != c {
					wantRefused(t, s, binding, string(token), fmt.Sprintf("character %d of %d is byte %d", i, len(token), other))
				}
			}
			token[i] = c
		}
		if _, err := s.Open(binding, string(token)); err != nil {
			t.Errorf("Open of the token itself: %v", err)
		}
	}
}

// places are the first two and the last two of the characters of each part between dots.
func places(token []byte) (at []int) {
	start := 0
	for _, part := range bytes.Split(token, []byte(".")) {
		for _, i := range []int{0, 1, len(part) - 2, len(part) - 1} {
			if i >= 0 && i < len(part) {
				at = append(at, start+i)
			}
		}
		start += len(part) + 1
	}
	return at
}

// Attack 9: cut off, longer, or written in another way.
func extended(t testing.TB, n New) {
	s := n.plain(t)
	token := mustSeal(t, s, driver.ID{7}, record(set("a", `"x"`)))
	for i := range len(token) {
		wantRefused(t, s, binding, token[:i], fmt.Sprintf("the first %d characters", i))
		wantRefused(t, s, binding, token[i+1:], fmt.Sprintf("all but the first %d characters", i+1))
		wantRefused(t, s, binding, token[:i]+token[i+1:], fmt.Sprintf("without character %d", i))
		for _, more := range []string{"A", "AAAA", "=", "\n", "\r\n", " ", "\x00", ".", "%"} {
			wantRefused(t, s, binding, token[:i]+more+token[i:], fmt.Sprintf("with %q at %d", more, i))
		}
	}
	for _, more := range []string{"A", "AA", "AAAA", "=", "==", "\n", "\r\n", " ", ".", ".A", "\x00", "\t", token, "." + token} {
		wantRefused(t, s, binding, token+more, fmt.Sprintf("with %.8q at the end", more))
	}
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(token)
	if standard != token {
		wantRefused(t, s, binding, standard, "in the alphabet with + and /")
	}
}

// Attack 10: a token of one place taken to another.
func elsewhere(t testing.TB, n New) {
	ring := keyring.New(keyring.NewSet())
	s := n.must(t, ring, Settings{})
	token := mustSeal(t, s, driver.ID{7}, record(set("a", `"x"`)))
	for _, b := range []string{"", "__Host-Http-session", "__Host-Http-session\x00other", binding + "\x00", binding[1:], "x" + binding} {
		wantRefused(t, s, b, token, fmt.Sprintf("binding %q", b))
	}
	for _, other := range []Settings{{Application: "bank"}, {Purpose: "reset"}, {Application: "shopsession"}, {Application: "session", Purpose: "shop"},
		{Application: "shopses", Purpose: "sion"}, {Application: "sho", Purpose: "psession"}} {
		wantRefused(t, n.must(t, ring, other), binding, token, fmt.Sprintf("settings %+v", other))
	}
	if mustOpen(t, n.must(t, ring, Settings{MaxBytes: 1024}), token).ID != (driver.ID{7}) {
		t.Error("with another MaxBytes: another ID")
	}
}

// steps returns the ring before a second key is added, while it waits, after it became active, and after the first was
// retired.
func steps(t testing.TB) []*keyring.Ring {
	t.Helper()
	first := keyring.NewSet()
	waiting, key, err := first.Add()
	if err != nil {
		t.Fatal(err)
	}
	active, err := waiting.Promote(key.ID())
	if err != nil {
		t.Fatal(err)
	}
	retired, err := active.Retire(first.Active().ID())
	if err != nil {
		t.Fatal(err)
	}
	return []*keyring.Ring{keyring.New(first), keyring.New(waiting), keyring.New(active), keyring.New(retired)}
}

// Attack 11: a key that is unknown, retired, waiting.
func keys(t testing.TB, n New) {
	rings := steps(t)
	var s []driver.Sealer
	for _, r := range rings {
		s = append(s, n.must(t, r, Settings{}))
	}
	first, second := mustSeal(t, s[0], driver.ID{1}, record()), mustSeal(t, s[2], driver.ID{2}, record())
	for _, tt := range []struct {
		what  string
		s     driver.Sealer
		token string
		err   error
		stale bool
	}{
		{"the only key", s[0], first, nil, false},
		{"unknown", s[0], second, driver.ErrForeignSeal, false},
		{"active, another waits", s[1], first, nil, false},
		{"waiting", s[1], second, nil, false},
		{"decrypt only", s[2], first, nil, true},
		{"active", s[2], second, nil, false},
		{"retired", s[3], first, driver.ErrRetiredKey, false},
		{"active, the other retired", s[3], second, nil, false},
		{"of another ring", n.plain(t), first, driver.ErrForeignSeal, false},
	} {
		o, err := tt.s.Open(binding, tt.token)
		if !errors.Is(err, tt.err) || tt.err == driver.ErrForeignSeal && errors.Is(err, driver.ErrTampered) || o.Stale != tt.stale {
			t.Errorf("%s: Open = stale %v, %v, want %v, %v", tt.what, o.Stale, err, tt.stale, tt.err)
		}
	}
	// A key that waits seals nothing: there may be servers that have not got it yet.
	if _, err := s[0].Open(binding, mustSeal(t, s[1], driver.ID{3}, record())); err != nil {
		t.Errorf("sealed while a key waits: a server without that key opens it with %v", err)
	}
	// A key's ID alone proves nothing: the error of a token of an unknown key is that of anything that looks like one.
	if a, b := mustSeal(t, s[2], driver.ID{2}, record()), mustSeal(t, s[2], driver.ID{2}, record()); len(a) != len(b) {
		t.Error("two tokens of one record differ in length")
	}
}

// Attack 12: three servers learn each step of a rotation at different times; each session goes to another server each time, and
// is made anew when it is stale.
func rotation(t testing.TB, n New) {
	rings := steps(t)
	var s []driver.Sealer
	for _, r := range rings {
		s = append(s, n.must(t, r, Settings{}))
	}
	const sessions, servers = 200, 3
	tokens := make([]string, sessions)
	for i := range tokens {
		tokens[i] = mustSeal(t, s[0], driver.ID{byte(i), byte(i >> 8)}, record(set("n", fmt.Sprint(i))))
	}
	at := [servers]int{} // the step that each server has seen
	visit := func() (renewed int) {
		for i := range tokens {
			sealer := s[at[(i+renewed)%servers]]
			o, err := sealer.Open(binding, tokens[i])
			if err != nil {
				t.Fatalf("servers at steps %v: session %d: %v", at, i, err)
			}
			if o.Stale {
				renewed++
				tokens[i] = mustSeal(t, sealer, o.ID, o.Record)
			}
		}
		return renewed
	}
	for step := 1; step < len(rings); step++ {
		for server := range servers {
			at[server] = step
			visit()
			if again := visit() + visit(); step != 2 && again > 0 || server == servers-1 && visit() > 0 {
				t.Errorf("servers at steps %v: tokens are made anew again and again", at)
			}
		}
	}
	for i, token := range tokens {
		if o := mustOpen(t, s[3], token); o.ID != (driver.ID{byte(i), byte(i >> 8)}) || o.Stale {
			t.Fatalf("session %d: not under the newest key", i)
		}
	}
}

// Attack 23: the largest record that fits, and one byte more.
func size(t testing.TB, n New) {
	for _, most := range []int{1024, 4096, 0, 64 << 10} {
		s := n.must(t, keyring.New(keyring.NewSet()), Settings{MaxBytes: most})
		limit := s.Describe().MaxBytes
		if most > 0 && limit != most {
			t.Errorf("Describe has MaxBytes %d, want %d", limit, most)
		}
		rec, longest := record(), ""
		low, high := 0, limit // low fits
		for low+1 < high {
			middle := (low + high) / 2
			token, err := s.Seal(binding, driver.ID{7}, with(rec, middle))
			switch {
			case err == nil:
				low, longest = middle, token
				if len(token) > limit {
					t.Fatalf("MaxBytes %d: a token of %d", limit, len(token))
				}
			case errors.Is(err, driver.ErrTooLarge) && token == "":
				high = middle
			default:
				t.Fatalf("MaxBytes %d: Seal of %d bytes = %d characters, %v, want ErrTooLarge", limit, middle, len(token), err)
			}
		}
		if len(longest) < limit-3 {
			t.Errorf("MaxBytes %d: the longest token has only %d characters", limit, len(longest))
		}
		if o := mustOpen(t, s, longest); !o.Record.Fields.Equal(with(rec, low).Fields) {
			t.Errorf("MaxBytes %d: the longest token holds something else", limit)
		}
	}
	rec := record()
	rec.User = strings.Repeat("u", driver.MaxName+1)
	if _, err := n.plain(t).Seal(binding, driver.ID{}, rec); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("Seal of a user name of %d bytes = %v, want ErrTooLarge", len(rec.User), err)
	}
	if _, err := n(keyring.New(keyring.NewSet()), Settings{Application: "a", Purpose: "b", MaxBytes: 1023}); err == nil {
		t.Error("New with MaxBytes 1023: want an error")
	}
	if _, err := n(nil, Settings{Application: "a", Purpose: "b"}); err == nil {
		t.Error("New without keys: want an error")
	}
}

func with(rec driver.Record, n int) driver.Record {
	rec.Fields = driver.Fields{}.With(set("big", `"`+strings.Repeat("x", n)+`"`))
	return rec
}

// Attack 25: how long a token is says nothing of what is in it, but how long that is.
func length(t testing.TB, n New) {
	s := n.plain(t)
	rec := record()
	want := 0
	for guess := range 256 {
		rec.Fields = driver.Fields{}.With(set("secret", `"4f1cb7d8a0"`), set("guess", fmt.Sprintf(`"%02xcb7d8a0"`, guess)))
		got := len(mustSeal(t, s, driver.ID{byte(guess)}, rec))
		if want == 0 {
			want = got
		}
		if got != want {
			t.Fatalf("guess %d: %d characters, the others %d", guess, got, want)
		}
	}
}

// Attack 24: what is no token is refused, and costs no more memory than a small multiple of its length.
func hostile(t testing.TB, n New) {
	s := n.plain(t)
	good := mustSeal(t, s, driver.ID{7}, record(set("a", `"x"`)))
	head, _, _ := strings.Cut(good, ".")
	for _, token := range []string{
		"", ".", "..", "...", "A", "AA", "AAAAAAAA", "AQ", "ey", "e30.e30.", "null", "\x00", "é", strings.Repeat("A", 1<<20), strings.Repeat(".", 1<<16),
		strings.Repeat("A.", 1<<15), strings.Repeat("W", 1<<16), strings.Repeat("e", 20) + "." + strings.Repeat("W1tb", 1<<14) + ".AA",
		head + "." + strings.Repeat("W1tb", 1<<13) + "." + strings.Repeat("A", 86), strings.Repeat(good, 60),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		wantRefused(t, s, binding, token, fmt.Sprintf("%d characters that begin with %.20q", len(token), token))
		runtime.ReadMemStats(&after)
		if took, most := after.TotalAlloc-before.TotalAlloc, uint64(8*len(token)+64<<10); took > most {
			t.Errorf("%d characters that begin with %.20q took %d bytes, want at most %d", len(token), token, took, most)
		}
	}
}

// memory: what was opened stays as it is, and what was sealed too, whatever the sealer does next.
func memory(t testing.TB, n New) {
	s := n.plain(t)
	rec := record(set("a", `"first"`), set("b", "1"))
	before := bytes.Clone(rec.Fields.Bytes())
	o := mustOpen(t, s, mustSeal(t, s, driver.ID{1}, rec))
	for i := range 20 {
		other := mustSeal(t, s, driver.ID{2}, record(set("a", `"other"`), set("b", fmt.Sprint(i%10))))
		mustOpen(t, s, other)
		wantRefused(t, s, binding, other[:len(other)-4], "cut off")
	}
	if diff := same(o.ID, o.Record, driver.ID{1}, rec); diff != "" {
		t.Errorf("after others were opened, the first has %s", diff)
	}
	if !bytes.Equal(rec.Fields.Bytes(), before) {
		t.Error("Seal or Open changed the fields that Seal was given")
	}
}

// concurrent seals and opens from many goroutines; the race detector watches.
func concurrent(t testing.TB, n New) {
	s := n.plain(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				id, rec := driver.ID{byte(g), byte(i)}, record(set("g", fmt.Sprint(g, i)))
				token, err := s.Seal(binding, id, rec)
				if err != nil {
					t.Errorf("Seal: %v", err)
					return
				}
				o, err := s.Open(binding, token)
				if err != nil || same(o.ID, o.Record, id, rec) != "" {
					t.Errorf("Open: %v, %s", err, same(o.ID, o.Record, id, rec))
					return
				}
			}
		})
	}
	wg.Wait()
}

// expiry: to the millisecond, and with the record. It runs in a bubble of synctest.
func expiry(t testing.TB, n New) {
	s := n.plain(t)
	time.Sleep(123 * time.Millisecond)
	rec := record(set("a", "1"))
	rec.Expires = time.Now().Add(90*time.Second + time.Millisecond).Truncate(time.Millisecond)
	token := mustSeal(t, s, driver.ID{7}, rec)
	time.Sleep(time.Until(rec.Expires) - time.Nanosecond)
	mustOpen(t, s, token)
	time.Sleep(time.Nanosecond)
	o, err := s.Open(binding, token)
	if !errors.Is(err, driver.ErrGone) || same(o.ID, o.Record, driver.ID{7}, rec) != "" {
		t.Errorf("Open at the expiry = %v, %s, want ErrGone and the record", err, same(o.ID, o.Record, driver.ID{7}, rec))
	}
	token = token[:len(token)-1]
	time.Sleep(time.Hour)
	wantRefused(t, s, binding, token, "cut off, and long past the expiry")
}

// printsNothing: whatever a log makes of a sealer leads to no key (attack 27).
func printsNothing(t testing.TB, n New) {
	s := n.plain(t)
	mustSeal(t, s, driver.ID{1}, record()) // its keys are derived now
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if got := fmt.Sprintf(verb, s); len(got) > 40 || !strings.HasSuffix(got, " sealer]") {
			t.Errorf("printed by %s it is %d characters, want no more than what kind it is", verb, len(got))
		}
	}
}
