package driver_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

func TestNewRevision(t *testing.T) {
	ahead := uint64(time.Now().Add(24*time.Hour).UnixMilli()) << 20 // written by a server whose clock is ahead
	for _, prev := range []uint64{0, 1, 1 << 53, ahead, math.MaxInt64, math.MaxUint64 - 1} {
		if rev := driver.NewRevision(prev); rev <= prev {
			t.Errorf("NewRevision(%d) = %d, want more", prev, rev)
		}
	}
	if rev := driver.NewRevision(ahead); rev <= ahead || rev > ahead+1<<20 {
		t.Errorf("NewRevision(%d) = %d, want one of the next 2^20: time has not come that far", ahead, rev)
	}
	if rev := driver.NewRevision(0); rev < 1<<53 || rev > math.MaxInt64 {
		t.Errorf("NewRevision(0) = %d, want more than a float keeps apart, and less than 2^63", rev)
	}
}

func TestNewRevisionGrowsWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			earlier := driver.NewRevision(0)
			time.Sleep(time.Millisecond)
			if later := driver.NewRevision(0); later <= earlier {
				t.Fatalf("a revision made 1 ms later is %d, not more than %d", later, earlier)
			}
		}
	})
}

// TestNewRevisionRarelyRepeats makes records anew at one instant: their revisions differ but for chance, 2 in
// 2,000 at 20 bits.
func TestNewRevisionRarelyRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu   sync.Mutex
			seen = make(map[uint64]bool)
			wg   sync.WaitGroup
		)
		for range 2000 {
			wg.Go(func() {
				rev := driver.NewRevision(0)
				mu.Lock()
				defer mu.Unlock()
				seen[rev] = true
			})
		}
		wg.Wait()
		if len(seen) < 1980 {
			t.Errorf("2,000 revisions of one millisecond: %d distinct, want about 1,998", len(seen))
		}
	})
}

func TestID(t *testing.T) {
	var id driver.ID
	for i := range id {
		id[i] = byte(i * 7)
	}
	if got, want := id.String(), id.Hex()[:8]; got != want || len(id.Hex()) != 64 {
		t.Errorf("String = %q, Hex = %q, want the first 8 of 64 characters", got, id.Hex())
	}
	if got := fmt.Sprintf("%v %s", id, id); strings.Contains(got, id.Hex()) {
		t.Errorf("printed as %q: the whole ID shows", got)
	}
	if back, err := driver.ParseID(id.Hex()); err != nil || back != id {
		t.Errorf("ParseID(Hex) = %v, %v", back, err)
	}
	for _, bad := range []string{"", id.String(), id.Hex()[1:], id.Hex() + "00", "g" + id.Hex()[1:], strings.Repeat("\xff", 64)} {
		if _, err := driver.ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) took it", bad)
		}
	}
}

func TestRecordExpired(t *testing.T) {
	end := time.UnixMilli(1_700_000_000_000)
	rec := driver.Record{Expires: end}
	if rec.Expired(end.Add(-1)) || !rec.Expired(end) || !rec.Expired(end.Add(1)) {
		t.Error("a record ends at Expires, neither before nor after")
	}
}

func TestSameLife(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000)
	rec := driver.Record{User: "ada", Created: at, Revision: 1}
	tests := []struct {
		name string
		o    driver.Record
		want bool
	}{
		{"later state", driver.Record{User: "ada", Created: at.UTC(), Revision: 9}, true},
		{"other user", driver.Record{User: "bob", Created: at}, false},
		{"made anew", driver.Record{User: "ada", Created: at.Add(time.Millisecond)}, false},
		{"marker", driver.Record{}, false},
	}
	for _, tt := range tests {
		if got := rec.SameLife(tt.o); got != tt.want {
			t.Errorf("%s: SameLife = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestUnavailable(t *testing.T) {
	if err := driver.Unavailable(nil); err != nil {
		t.Errorf("Unavailable(nil) = %v", err)
	}
	cause := errors.New("connection refused")
	err := driver.Unavailable(cause)
	if !errors.Is(err, driver.ErrUnavailable) || !errors.Is(err, cause) || errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Unavailable(%v) = %v, want one that matches both it and ErrUnavailable", cause, err)
	}
	if again := driver.Unavailable(err); again != err {
		t.Errorf("Unavailable of an unavailable = %v, want it unchanged", again)
	}
	if !errors.Is(driver.ErrClosed, driver.ErrUnavailable) {
		t.Error("ErrClosed does not match ErrUnavailable")
	}
}

// What logs and encoders make of an ID is 8 characters; the whole of it takes Hex.
func TestIDInText(t *testing.T) {
	id := driver.ID{0x0a, 0x1b, 0x2c, 0x3d, 0x4e}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "session", id)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "session", id)
	j, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{log.String(), string(j), fmt.Sprint(id)} {
		if !strings.Contains(text, "0a1b2c3d") || strings.Contains(text, "0a1b2c3d4e") || strings.Contains(text, "10,27") {
			t.Errorf("an ID is shown as %s", text)
		}
	}
}
