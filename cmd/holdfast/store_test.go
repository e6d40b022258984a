package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	sessions "github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store"
)

func mustOpen(t testing.TB, url string) driver.Store {
	t.Helper()
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// fill puts n sessions into a store, half of them logged in, each with a record of its user.
func fill(t testing.TB, s driver.Store, n int) {
	t.Helper()
	now := time.UnixMilli(time.Now().UnixMilli())
	save := func(id driver.ID, rec driver.Record) {
		rec.Created, rec.Seen, rec.Revision = now, now, driver.NewRevision(0)
		rec.Expires = now.Add(2 * time.Hour)
		if err := s.Save(t.Context(), id, rec, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		id, rec := numbered(i), driver.Record{Fields: driver.Fields{}.With(driver.Change{Name: "n", Value: fmt.Append(nil, i)})}
		if i%2 == 1 {
			rec.User = fmt.Sprint("user-", i)
			entry := append([]byte{16}, make([]byte, 12)...)
			save(sessions.UserID(rec.User), driver.Record{User: rec.User, Fields: driver.Fields{}.With(driver.Change{Name: string(id[:]), Value: entry})})
		}
		save(id, rec)
	}
}

func numbered(i int) (id driver.ID) {
	copy(id[:], fmt.Sprintf("%016d, a session", i))
	return id
}

// expire puts n records into a store that have expired when it returns.
func expire(t testing.TB, s driver.Store, n int) {
	t.Helper()
	end := time.UnixMilli(time.Now().Add(500 * time.Millisecond).UnixMilli())
	for i := range n {
		rec := driver.Record{Created: end, Seen: end, Expires: end, Revision: driver.NewRevision(0)}
		if err := s.Save(t.Context(), numbered(1_000_000+i), rec, 0); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 30*time.Second, func() error {
		if time.Since(end) < 1100*time.Millisecond { // some databases count seconds
			return errors.New("not yet")
		}
		return nil
	})
}

func TestStoreStatAndGC(t *testing.T) {
	t.Parallel()
	redis := "redis://:pass@" + testserver.Redis(t, testserver.RedisOptions{Password: "pass"}).Addr
	files := "file:" + filepath.Join(t.TempDir(), "sessions")
	lite := "sqlite:" + filepath.Join(t.TempDir(), "sessions.db")
	for name, url := range map[string]string{"redis": redis, "file": files, "sqlite": lite} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, url)
			_, sweeps := s.(driver.Sweeper)
			fill(t, s, 10)
			expire(t, s, 20)
			status, out, errs := holdfast(t, nil, "store", "stat", "--list", url, "-o", "json")
			var st stat
			mustUnmarshal(t, out, &st)
			if status != 0 || errs != "" || st.Kind != name || st.Records == nil || *st.Records != 15 {
				t.Errorf("stat: %d %s\n%s", status, errs, out)
			}
			if l := st.Listed; l.LoggedIn != 5 || l.Anonymous != 5 || l.Users != 5 || l.Markers != 0 || l.BytesMax < 36 || l.ExpireIn[2].Sessions != 10 {
				t.Errorf("listed: %+v", l)
			}
			if strings.Contains(out, "pass@") || regexp.MustCompile(`[0-9a-f]{16}`).MatchString(out) {
				t.Errorf("stat shows a password or an ID:\n%s", out)
			}
			if status, out, errs := holdfast(t, nil, "store", "stat", url); status != 0 || errs != "" || !regexp.MustCompile(`(?m)^records +15$`).MatchString(out) {
				t.Errorf("stat: %d %s\n%s", status, errs, out)
			}
			expire(t, s, 20) // the file store removes what it finds expired when it lists
			status, out, errs = holdfast(t, nil, "store", "gc", url, "-o", "json")
			var gc struct {
				Removed int
				Itself  bool `json:"by_itself"`
			}
			mustUnmarshal(t, out, &gc)
			if status != 0 || errs != "" || gc.Itself == sweeps || sweeps && gc.Removed != 20 {
				t.Errorf("gc: %d %s\n%s", status, errs, out)
			}
			status, out, _ = holdfast(t, nil, "store", "gc", url)
			if want := map[bool]string{true: "0 removed\n", false: name + " removes what has expired by itself: nothing to do\n"}[sweeps]; status != 0 || out != want {
				t.Errorf("gc again: %d %q, want %q", status, out, want)
			}
		})
	}
}

func TestStoreMigrate(t *testing.T) {
	t.Parallel()
	url := "sqlite:" + filepath.Join(t.TempDir(), "sessions.db") + "?table=shop"
	status, out, errs := holdfast(t, nil, "store", "migrate", "--print", url)
	if status != 0 || errs != "" || !strings.Contains(out, "CREATE TABLE IF NOT EXISTS shop (") {
		t.Errorf("print: %d %s\n%s", status, errs, out)
	}
	if !missing(pathOf(url)) {
		t.Error("--print made the file")
	}
	for range 2 {
		if status, out, errs := holdfast(t, nil, "store", "migrate", url); status != 0 || errs != "" || !strings.HasSuffix(out, " is ready\n") {
			t.Errorf("migrate: %d %q %q", status, out, errs)
		}
	}
	for _, args := range [][]string{{"memory:"}, {"file:/x"}, {"redis://x", "--print"}} {
		status, out, errs := holdfast(t, nil, append([]string{"store", "migrate"}, args...)...)
		if status != 0 || out != "" || !strings.Contains(errs, "needs no schema") {
			t.Errorf("migrate %v: %d %q %q", args, status, out, errs)
		}
	}
}

// wantTables checks that a check has left no table behind.
func wantTables(t *testing.T, url string, want int) {
	t.Helper()
	db, err := sql.Open("sqlite", pathOf(url)) // the driver that the store has registered
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var tables int
	if err := db.QueryRow("SELECT count(*) FROM sqlite_master WHERE type = 'table'").Scan(&tables); err != nil || tables != want {
		t.Errorf("after the check there are %d tables (%v), want %d", tables, err, want)
	}
}

func TestScratchOptions(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://db":                       "redis://db?prefix=holdfast%3Acheck%3A",
		"redis-cluster://a:1,b:2?prefix=p": "redis-cluster://a:1,b:2?prefix=pcheck%3A",
		"memcached://a,b?hash=ketama":      "memcached://a,b?hash=ketama&prefix=holdfast%3Acheck%3A",
	} {
		if got := withOption(raw, "prefix", "holdfast:", "check:"); got != want {
			t.Errorf("withOption(%q) = %q, want %q", raw, got, want)
		}
	}
}

func TestStoreCopy(t *testing.T) {
	t.Parallel()
	redis := "redis://" + testserver.Redis(t).Addr
	files := "file:" + filepath.Join(t.TempDir(), "sessions")
	journal := filepath.Join(t.TempDir(), "journal")
	from, to := mustOpen(t, files), mustOpen(t, redis+"?prefix=new:")
	n := testserver.Scale(300, 20_000)
	fill(t, from, n)
	copyTo := func(args ...string) (r copyReport, status int, errs string) {
		t.Helper()
		args = append([]string{"store", "copy", files, redis + "?prefix=new:", "--journal", journal, "-o", "json"}, args...)
		status, out, errs := holdfast(t, nil, args...)
		mustUnmarshal(t, out, &r)
		return r, status, errs
	}
	all := n + n/2
	if r, status, errs := copyTo(); status != 0 || errs != "" || r.Copied != all || r.Records != all || !r.Settled {
		t.Fatalf("copy: %d %s %+v", status, errs, r)
	}
	wantCopied(t, from, to, all)
	for _, id := range []driver.ID{numbered(0), numbered(2)} {
		if err := from.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if r, status, errs := copyTo(); status != 0 || errs != "" || r.Removed != 2 || r.Copied != 0 || r.Skipped != all-2 {
		t.Errorf("copy again: %d %s %+v", status, errs, r)
	}
	wantCopied(t, from, to, all-2)

	// Too large for the other store, and the same store under another name.
	status, out, errs := holdfast(t, nil, "store", "copy", redis+"?prefix=new:", strings.Replace(redis, "127.0.0.1", "localhost", 1)+"?prefix=new:", "--journal", journal+"2")
	if status != 2 || out != "" || !strings.Contains(errs, "FROM and TO are one store") {
		t.Errorf("copy onto itself: %d %s", status, errs)
	}
	status, _, errs = holdfast(t, nil, "store", "copy", redis+"?prefix=new:", redis+"?prefix=other:", "--journal", journal)
	if status != 1 || !strings.Contains(errs, "another pair of stores") {
		t.Errorf("another pair's journal: %d %s", status, errs)
	}
}

// TestStoreCopyTooLarge: what cannot be copied is named, and the rest is copied.
func TestStoreCopyTooLarge(t *testing.T) {
	t.Parallel()
	files := "file:" + filepath.Join(t.TempDir(), "sessions")
	heap := database("mysql", testserver.MariaDB(t)) + "?engine=memory&max_bytes=1000"
	from := mustOpen(t, files)
	fill(t, from, 10)
	now := time.UnixMilli(time.Now().UnixMilli())
	large := driver.Record{Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0),
		Fields: driver.Fields{}.With(driver.Change{Name: "large", Value: make([]byte, 2000)})}
	if err := from.Save(t.Context(), driver.ID{0xab, 0xcd}, large, 0); err != nil {
		t.Fatal(err)
	}
	status, out, errs := holdfast(t, nil, "store", "copy", files, heap, "--journal", filepath.Join(t.TempDir(), "journal"))
	for _, want := range []string{`(?m)^ +15 copied$`, `(?m)^ +1 failed$`, `(?m)^ +abcd0000: .*too large`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the report does not match %s:\n%s", want, out)
		}
	}
	if status != 3 || !strings.Contains(errs, "partly done: 1 of 16 records could not be copied") {
		t.Errorf("exit status %d: %s", status, errs)
	}
}

// TestStoreCopyKilled kills the command over and over, until it gets through. Sessions that end in between stay ended.
func TestStoreCopyKilled(t *testing.T) {
	t.Parallel()
	redis := "redis://" + testserver.Redis(t).Addr
	files := "file:" + filepath.Join(t.TempDir(), "sessions")
	journal := filepath.Join(t.TempDir(), "journal")
	from, to := mustOpen(t, redis), mustOpen(t, files)
	n := testserver.Scale(1500, 100_000)
	fill(t, from, n)
	ended, kills := 0, 0
	for {
		cmd := command(t, "store", "copy", redis, files, "--journal", journal, "--parallel", "4", "--rate", fmt.Sprint(n), "-o", "json")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		before := size(journal)
		var err error
		killed := false
		eventually(t, 2*time.Minute, func() error {
			select {
			case err = <-done:
				return nil
			default:
			}
			if !killed && size(journal)-before > int64(n)*64 { // about a fifth of it
				_ = cmd.Process.Kill() // fails if it has ended
				killed = true
			}
			return errors.New("still running")
		})
		if err == nil {
			var r copyReport
			mustUnmarshal(t, out.String(), &r)
			t.Logf("killed %d times; in the end %+v", kills, r)
			// What was copied before was not written again: the report calls it skipped.
			if r.Failed != 0 || !r.Settled || kills == 0 || r.Skipped == 0 || r.Copied > (n+n/2)*3/4 {
				t.Errorf("killed %d times: %+v", kills, r)
			}
			break
		}
		if !killed {
			t.Fatalf("copy: %v: %s", err, errs.String())
		}
		kills++
		for range 5 {
			if err := from.Delete(t.Context(), numbered(ended)); err != nil {
				t.Fatal(err)
			}
			ended += 2 // an anonymous one
		}
	}
	wantCopied(t, from, to, n+n/2-ended/2)
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// TestStoreCopyFollows: it copies what changes until Ctrl-C, which is its ordinary end.
func TestStoreCopyFollows(t *testing.T) {
	t.Parallel()
	redis := "redis://" + testserver.Redis(t).Addr
	files := "file:" + filepath.Join(t.TempDir(), "sessions")
	from, to := mustOpen(t, files), mustOpen(t, redis)
	fill(t, from, 10)
	cmd := command(t, "store", "copy", files, redis, "--journal", filepath.Join(t.TempDir(), "journal"), "--follow", "--every", "10ms", "-o", "json")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	for round := range 5 {
		rec, err := from.Load(t.Context(), numbered(0))
		if err != nil {
			t.Fatal(err)
		}
		prev := rec.Revision
		rec.Revision = driver.NewRevision(prev)
		rec.Fields = rec.Fields.With(driver.Change{Name: "round", Value: fmt.Append(nil, round)})
		if err := from.Save(t.Context(), numbered(0), rec, prev); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, func() error {
			got, err := to.Load(t.Context(), numbered(0))
			if err == nil && got.Revision != rec.Revision {
				err = errors.New("it has not arrived")
			}
			return err
		})
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var r copyReport
	if e := json.Unmarshal(out.Bytes(), &r); err != nil || e != nil || errs.Len() > 0 || r.Copied != 15 || r.Failed != 0 {
		t.Errorf("%v, %v: %s\n%s", err, e, errs.String(), out.String())
	}
}

// wantCopied checks that two stores hold the same n records, byte for byte.
func wantCopied(t *testing.T, from, to driver.Store, n int) {
	t.Helper()
	all := make(map[driver.ID][]byte)
	for item, err := range from.(driver.Lister).List(context.WithoutCancel(t.Context())) {
		if err != nil {
			t.Fatal(err)
		}
		all[item.ID] = mustEncode(t, item.Record)
	}
	arrived := 0
	for item, err := range to.(driver.Lister).List(context.WithoutCancel(t.Context())) {
		switch {
		case err != nil:
			t.Fatal(err)
		case item.Record.Created.IsZero(): // a marker
		case !bytes.Equal(all[item.ID], mustEncode(t, item.Record)):
			t.Errorf("%s has arrived in another state, or should not be there", item.ID)
		default:
			arrived++
		}
	}
	if arrived != n || len(all) != n {
		t.Errorf("%d of %d records have arrived, want %d", arrived, len(all), n)
	}
}

func mustEncode(t *testing.T, rec driver.Record) []byte {
	t.Helper()
	b, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
