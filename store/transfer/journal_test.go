package transfer

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/driver"
)

func mustOpen(t testing.TB, path, from, to string) *Journal {
	t.Helper()
	j, err := OpenJournal(path, from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() }) // for the second time, where it matters
	return j
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func wantEntries(t testing.TB, what string, got, want map[driver.ID]entry) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestJournal writes one, and reads it in both directions, after it was cut off at every byte, and tidied.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	soon := time.Now().Add(time.Hour).UnixMilli()
	j := mustOpen(t, path, "redis://a", "postgres://b\n")
	for _, s := range []struct {
		op byte
		id byte
		e  entry
	}{
		{opIntent, 1, entry{intent: 10, expires: soon}},
		{opDone, 1, entry{from: 10, to: 10, expires: soon}},
		{opListed, 2, entry{expires: soon, listed: true}},
		{opIntent, 2, entry{intent: 20, expires: soon, listed: true}},
		{opDone, 3, entry{from: 30, to: 31, expires: soon}},
		{opDone, 4, entry{from: 40, to: 40, expires: soon}},
		{opGone, 4, entry{}},
		{opDone, 5, entry{from: 50, to: 50, expires: 1}}, // over
		{opDone, 6, entry{from: 60, to: 60, expires: soon}},
		{opIntent, 6, entry{intent: 61, expires: soon}},
	} {
		if err := j.append(s.op, driver.ID{s.id}, s.e); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
	forth := map[driver.ID]entry{
		{1}: {from: 10, to: 10, expires: soon}, {2}: {intent: 20, expires: soon, listed: true}, {3}: {from: 30, to: 31, expires: soon},
		{6}: {from: 60, to: 60, intent: 61, expires: soon},
	}
	back := map[driver.ID]entry{
		{1}: {from: 10, to: 10, expires: soon}, {2}: {expires: soon}, {3}: {from: 31, to: 30, expires: soon}, {6}: {from: 60, to: 60, expires: soon},
	}
	j = mustOpen(t, path, "postgres://b\n", "redis://a")
	wantEntries(t, "back", j.take(), back)
	mustClose(t, j)
	j = mustOpen(t, path, "redis://a", "postgres://b\n")
	wantEntries(t, "forth", j.take(), forth)

	j.size = 1 << 30 // as after a long run
	err := j.tidy(func(f func(driver.ID, entry)) {
		for id, e := range forth {
			f(id, e)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.append(opDone, driver.ID{7}, entry{from: 70, to: 70, expires: soon}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, "redis://a", "postgres://b\n"); err == nil {
		t.Error("the tidied journal is not locked")
	}
	mustClose(t, j)
	forth[driver.ID{7}] = entry{from: 70, to: 70, expires: soon}
	j = mustOpen(t, path, "redis://a", "postgres://b\n")
	wantEntries(t, "tidied", j.take(), forth)
	mustClose(t, j)

	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(path, "redis://a", "postgres://b\n")
		if err != nil {
			t.Fatalf("cut off after %d bytes: %v", n, err)
		}
		for id, e := range j.take() {
			if e.known() && (e.from != forth[id].from || e.to != forth[id].to) {
				t.Errorf("cut off after %d bytes: %+v", n, e)
			}
		}
		if err := j.append(opDone, driver.ID{8}, entry{from: 80, to: 80, expires: soon}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		j = mustOpen(t, path, "redis://a", "postgres://b\n")
		if e := j.take()[driver.ID{8}]; e.from != 80 {
			t.Fatalf("what was written after %d bytes is not read: %+v", n, e)
		}
		mustClose(t, j)
	}
	damaged := append([]byte{}, whole...)
	damaged[len(damaged)-2*stepBytes]++
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenJournal(path, "redis://a", "postgres://b\n"); err == nil {
		t.Error("a damaged journal is opened")
	}
}

func FuzzReadSteps(f *testing.F) {
	var j Journal
	soon := time.Now().Add(time.Hour).UnixMilli()
	one := j.step(opDone, driver.ID{1}, entry{from: 1, to: 2, expires: soon})
	two := j.step(opIntent, driver.ID{1}, entry{intent: 3, expires: soon})
	f.Add(append(one, two...), false)
	f.Add(append(two, one[:30]...), true)
	f.Add(make([]byte, 200), false)
	f.Fuzz(func(t *testing.T, b []byte, swapped bool) {
		entries, whole, err := readSteps(b, swapped)
		if err != nil {
			return
		}
		if whole > len(b) || whole%stepBytes != 0 || len(entries) > whole/stepBytes {
			t.Errorf("%d entries from %d of %d bytes", len(entries), whole, len(b))
		}
		again, n, err := readSteps(b[:whole], swapped)
		if err != nil || n != whole || len(again) != len(entries) {
			t.Errorf("read again: %d entries from %d bytes, %v", len(again), n, err)
		}
	})
}
