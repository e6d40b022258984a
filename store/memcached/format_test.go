package memcached_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// fixture is the record in testdata/values.txt.
func fixture() driver.Record {
	at := time.UnixMilli(1764100000123)
	return driver.Record{
		User: "ada", Created: at, Seen: at.Add(time.Minute), Expires: at.Add(time.Hour), Revision: 0x0123456789abcdef,
		Fields: driver.Fields{}.With(set("name", "value")),
	}
}

// TestFixture: what an earlier release stored is read, and what this one stores is what it read.
func TestFixture(t *testing.T) {
	b, err := os.ReadFile("testdata/values.txt")
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string][]byte)
	for line := range strings.Lines(string(b)) {
		if name, digits, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && name[0] != '#' {
			if values[name], err = hex.DecodeString(digits); err != nil {
				t.Fatal(err)
			}
		}
	}
	encoded, err := memcached.EncodeValue(fixture())
	if err != nil || !bytes.Equal(encoded, values["record"]) {
		t.Errorf("the record is stored as %x, %v, want %x", encoded, err, values["record"])
	}
	rec, ended, err := memcached.DecodeValue(values["record"])
	if err != nil || ended || rec.User != "ada" || rec.Revision != fixture().Revision || !rec.Expires.Equal(fixture().Expires) || !rec.Fields.Equal(fixture().Fields) {
		t.Errorf("the stored record is read as %+v, %v, %v", rec, ended, err)
	}
	if _, ended, err := memcached.DecodeValue(values["ended"]); !ended || err != nil {
		t.Errorf("the stored end is read as %v, %v", ended, err)
	}
	for name, want := range map[string]error{"kind of a later release": driver.ErrVersion, "record of a later release": driver.ErrVersion, "cut": driver.ErrCorrupt} {
		if _, _, err := memcached.DecodeValue(values[name]); !errors.Is(err, want) || values[name] == nil {
			t.Errorf("%s is read with %v, want %v", name, err, want)
		}
	}
}

// What somebody else stored under a key is said to be that, is not overwritten by a save, and is ended by Delete.
func TestForeignValues(t *testing.T) {
	srvs, url := mustServers(t, 2)
	for _, options := range []string{"", "?copies=2"} {
		s := mustOpen(t, url+options)
		for i, tt := range []struct {
			value string
			want  error
		}{{"hello", driver.ErrVersion}, {"\x01\x02", driver.ErrVersion}, {"\x01\x01", driver.ErrCorrupt}, {"", driver.ErrCorrupt}} {
			first, _ := s.ServerOf(idOf(i))
			a := admin{t, srvs[first].Addr}
			put := "set " + key(idOf(i)) + " 0 0 " + string(rune('0'+len(tt.value))) + "\r\n" + tt.value + "\r\n"
			if got := a.do(put, 1)[0]; got != "STORED" {
				t.Fatal(got)
			}
			_, err := s.Load(t.Context(), idOf(i))
			wantErr(t, "Load", err, tt.want)
			wantErr(t, "Save of a new record", s.Save(t.Context(), idOf(i), record("ada"), 0), tt.want)
			wantErr(t, "Save", s.Save(t.Context(), idOf(i), record("ada"), 7), tt.want)
			mustDelete(t, s, idOf(i))
			_, err = s.Load(t.Context(), idOf(i))
			wantErr(t, "Load after Delete", err, driver.ErrNotFound)
		}
	}
}

func TestExpiration(t *testing.T) {
	now := time.Unix(1_764_100_000, 500e6)
	const month = 30 * 24 * 3600
	tests := []struct {
		name string
		in   time.Duration
		want int64 // a number of seconds, or a Unix time
	}{
		{"over", -time.Hour, 600},
		{"now", 0, 600},
		{"a millisecond", time.Millisecond, 601},
		{"an hour", time.Hour, 4200},
		{"30 days with the grace", (month - 600) * time.Second, month},
		{"more than 30 days with the grace", (month-600)*time.Second + time.Millisecond, now.Unix() + month + 1},
		{"31 days", 31 * 24 * time.Hour, now.Unix() + 31*24*3600 + 601},
		{"2037", time.Unix(2_145_916_800, 0).Sub(now), 2_145_916_800 + 601},
		{"2039, which no int32 holds", time.Unix(2_177_452_800, 0).Sub(now), 0},
		{"ever", math.MaxInt64, 0},
	}
	for _, tt := range tests {
		if got := memcached.Expiration(now.Add(tt.in), now, 10*time.Minute); int64(got) != tt.want {
			t.Errorf("%s: the key is sent with %d, want %d", tt.name, got, tt.want)
		}
	}
	if got := memcached.Expiration(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), now, 10*time.Minute); got != 0 {
		t.Errorf("year 9999: %d, want 0", got)
	}
}

// A Tag opens for its own revision and life until the record expires or an hour has passed, and for nothing else.
func TestTag(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const highest = 1 << 30
	wrong := 0
	for range 200_000 {
		now := time.Unix(1_764_100_000+r.Int64N(1e9), r.Int64N(1e9))
		cas, revision, life := 1+r.Uint64N(highest), r.Uint64(), 1+r.Uint64N(math.MaxUint64)
		lives := time.Duration(r.Int64N(int64(100 * 24 * time.Hour)))
		tag := memcached.MakeTag(cas, revision, life, now.Add(lives), now)
		got, ok := memcached.OpenTag(tag, revision, life, highest, now)
		if lives >= 32*time.Second && (!ok || got != cas) {
			t.Fatalf("the Tag of a record that lives %v opens to %d, %v, want %d", lives, got, ok, cas)
		}
		if ok && got != cas {
			t.Fatalf("a Tag opens to %d, want %d", got, cas)
		}
		if _, ok := memcached.OpenTag(tag, revision, life, highest, now.Add(lives)); ok {
			t.Fatalf("the Tag of a record that lived %v opens when it has expired", lives)
		}
		if _, ok := memcached.OpenTag(tag, revision, life, highest, now.Add(time.Hour+32*time.Second)); ok {
			t.Fatal("a Tag opens after an hour")
		}
		for _, other := range [][2]uint64{{revision + 1, life}, {revision, life + 1}, {revision ^ 1<<63, life}, {0, life}} {
			if got, ok := memcached.OpenTag(tag, other[0], other[1], highest, now); ok {
				if wrong++; got == cas {
					t.Fatalf("a Tag opens for revision %d and life %d, and not for %d and %d alone", other[0], other[1], revision, life)
				}
			}
		}
	}
	if wrong > 200 { // 800,000 openings of numbers below 2^44, of which one in 2^14 is below 2^30
		t.Errorf("%d Tags open to a plausible number for another revision or life", wrong)
	}
	now := time.Unix(1_764_100_000, 0)
	for _, tag := range []uint64{0, memcached.MakeTag(1<<44, 1, 1, now.Add(time.Hour), now), memcached.MakeTag(1, 1, 0, now.Add(time.Hour), now)} {
		if _, ok := memcached.OpenTag(tag, 1, 1, math.MaxUint64, now); ok || tag != 0 {
			t.Errorf("Tag %x opens, want 0, which does not", tag)
		}
	}
}

func FuzzValue(f *testing.F) {
	good, _ := memcached.EncodeValue(fixture())
	f.Add(good)
	f.Add([]byte{2, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, ended, err := memcached.DecodeValue(b)
		switch {
		case err != nil && !errors.Is(err, driver.ErrCorrupt) && !errors.Is(err, driver.ErrVersion):
			t.Errorf("%v, want ErrCorrupt or ErrVersion", err)
		case err == nil && ended && len(b) != 9:
			t.Errorf("%x is an end", b)
		case err == nil && !ended:
			if again, err := memcached.EncodeValue(rec); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%x is read, and stored as %x, %v", b, again, err)
			}
		}
	})
}

func FuzzStats(f *testing.F) {
	f.Add([]byte("STAT pid 1\r\nSTAT time 1764100000\r\nSTAT version 1.6.18\r\nEND\r\n"))
	f.Add([]byte("ERROR\r\n"))
	f.Add([]byte("STAT\r\nEND\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := memcached.ParseStats(bytes.NewReader(b))
		if err == nil && info == nil || len(info) > 1000 {
			t.Errorf("%d statistics, %v", len(info), err)
		}
	})
}

func FuzzMetadump(f *testing.F) {
	f.Add([]byte("key=a%3Ab exp=-1 la=1764100000 cas=1 fetch=no cls=1 size=65\r\nEND\r\n"))
	f.Add([]byte("BUSY currently processing crawler request\r\n"))
	f.Add([]byte("key=%zz\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		next := memcached.NextKey(bytes.NewReader(b))
		for n := 0; ; n++ {
			_, end, err := next()
			if end || err != nil {
				return
			}
			if n > len(b) {
				t.Fatal("more keys than bytes")
			}
		}
	})
}
