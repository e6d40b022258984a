package cookie_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/keyring"
	"github.com/holdfast-sessions/holdfast/sealed/cookie"
)

var update = flag.Bool("update", false, "write the fixtures anew; only for a new version of the format")

// fixture is what testdata/payload-v1.hex holds.
func fixture() (driver.ID, driver.Record) {
	return driver.ID{1, 2, 31: 255}, driver.Record{
		User: "ada", Created: time.UnixMilli(1_795_000_000_000), Seen: time.UnixMilli(1_795_000_060_000), Expires: time.UnixMilli(1_795_001_860_000),
		Revision: 1<<62 | 5,
		Fields:   driver.Fields{}.With(driver.Change{Name: "cart", Value: []byte("[1,2]")}, driver.Change{Name: "\x00own", Value: []byte{0xff}}),
	}
}

// A release reads what the one before wrote.
func TestPayloadFixture(t *testing.T) {
	id, rec := fixture()
	got := cookie.Encode(id, rec)
	const file = "testdata/payload-v1.hex"
	if *update {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(b)); hex.EncodeToString(got) != want {
		t.Errorf("encode wrote %x, want %s", got, want)
	}
	gotID, gotRec, err := cookie.Decode(got)
	if err != nil || gotID != id || gotRec.User != rec.User || !gotRec.Expires.Equal(rec.Expires) || gotRec.Revision != rec.Revision || !gotRec.Fields.Equal(rec.Fields) {
		t.Errorf("decode = %v, %+v, %v", gotID, gotRec, err)
	}
	if full, _ := driver.Encode(rec); len(got) >= len(full)+len(id) {
		t.Errorf("%d bytes, driver.Encode with an ID takes %d", len(got), len(full)+len(id))
	}
}

// FuzzPayload: whatever was sealed is a record, and is written back as the bytes it was read from, or is refused.
func FuzzPayload(f *testing.F) {
	f.Add(cookie.Encode(fixture()))
	f.Add(cookie.Encode(driver.ID{}, driver.Record{}))
	f.Add(bytes.Repeat([]byte{0xff}, 60))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, rec, err := cookie.Decode(bytes.Clone(b))
		if err != nil {
			if !errors.Is(err, driver.ErrTampered) {
				t.Fatalf("decode = %v, want ErrTampered", err)
			}
			return
		}
		for _, at := range []time.Time{rec.Created, rec.Seen, rec.Expires} {
			if at.UnixMilli() == (time.Time{}).UnixMilli() || at.Year() > 1e6 || at.Year() < -1e6 {
				return // the year 1 is what a zero Time stands for, and times overflow in 292 million years
			}
		}
		if again := cookie.Encode(id, rec); !bytes.Equal(again, b) {
			t.Fatalf("% x was read, and written back as % x", b, again)
		}
	})
}

// FuzzEnvelope: nothing that a client sends panics, and nothing opens but what was sealed.
func FuzzEnvelope(f *testing.F) {
	s, err := cookie.New(keyring.New(keyring.NewSet()), cookie.Config{Application: "shop"})
	if err != nil {
		f.Fatal(err)
	}
	id, rec := fixture()
	token, err := s.Seal("b", id, rec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(token[:20])
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, in string) {
		o, err := s.Open("b", in)
		if err == nil || errors.Is(err, driver.ErrGone) {
			if in != token || o.ID != id {
				t.Fatal("a token opened that was not sealed")
			}
		} else if !errors.Is(err, driver.ErrTampered) && !errors.Is(err, driver.ErrForeignSeal) {
			t.Fatalf("Open = %v", err)
		}
		if _, err := cookie.Inspect(nil, cookie.Config{}, "b", in); err != nil {
			t.Fatal(err)
		}
	})
}
