package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store"
)

func mustUnmarshal(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatalf("%v:\n%s", err, s)
	}
}

// mustKeep stores a record of somebody else's, and returns what to call to see that it alone is left.
func mustKeep(t *testing.T, url string) (wantAlone func()) {
	t.Helper()
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	now := time.UnixMilli(time.Now().UnixMilli())
	rec := driver.Record{User: "ada", Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0)}
	if err := s.Save(t.Context(), driver.ID{1}, rec, 0); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		n := 0
		for item, err := range s.(driver.Lister).List(t.Context()) {
			if err != nil || item.ID != (driver.ID{1}) {
				t.Errorf("after the check the store lists %s, %v", item.ID, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("after the check the store lists %d records, want the one that was there", n)
		}
	}
}

// TestStoreCheck checks a server in use: nothing of it is touched.
func TestStoreCheck(t *testing.T) {
	t.Parallel()
	redis := testserver.Redis(t, testserver.RedisOptions{Password: "pass"})
	url := "redis://:pass@" + redis.Addr + "?prefix=shop:"
	wantAlone := mustKeep(t, url)
	status, out, errs := holdfast(t, nil, "store", "check", url, "-o", "json")
	if status != 0 || errs != "" {
		t.Errorf("exit status %d: %s", status, errs)
	}
	var report jsonReport
	mustUnmarshal(t, out, &report)
	if !report.Passed || report.Kind != "redis" || !report.Shared || len(report.Cases) < 50 || len(report.Latency) < 3 {
		t.Errorf("report: passed %v, kind %s, shared %v, %d cases, %d latencies", report.Passed, report.Kind, report.Shared, len(report.Cases), len(report.Latency))
	}
	for _, c := range report.Cases {
		if !c.Passed && c.Skipped == "" {
			t.Errorf("%s: %v", c.Name, c.Failures)
		}
	}
	if strings.Contains(out, ":pass@") {
		t.Error("the report shows the password")
	}
	wantAlone()
}

// TestStoreCheckInterrupted: after Ctrl-C nothing is left behind either.
func TestStoreCheckInterrupted(t *testing.T) {
	t.Parallel()
	t.Run("file", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "sessions")
		mustMkdir(t, dir, 0o700)
		interruptCheck(t, "file:"+dir)
		if left, _ := filepath.Glob(filepath.Join(dir, "check-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		url := "sqlite:" + filepath.Join(t.TempDir(), "sessions.db")
		interruptCheck(t, url)
		wantTables(t, url, 2)
	})
}

func interruptCheck(t *testing.T, url string) {
	t.Helper()
	wantAlone := mustKeep(t, url)
	cmd := command(t, "store", "check", url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	cases := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.HasPrefix(s.Text(), "ok ") {
			if cases++; cases == 3 {
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	_ = cmd.Wait() // the status says it
	if status := cmd.ProcessState.ExitCode(); status != 1 || errs.String() != "holdfast: interrupted\n" {
		t.Errorf("exit status %d: %s", status, errs.String())
	}
	wantAlone()
}

func TestStoreCheckText(t *testing.T) {
	t.Parallel()
	status, out, errs := holdfast(t, nil, "store", "check", "memory:")
	for _, want := range []string{`(?m)^store  memory:$`, `(?m)^ok     delete/`, `\d+ cases: \d+ passed, 0 failed`, `(?m)^kind +memory$`, `(?m)^load +p50 \S+ +p99 \S+ +\d+ calls$`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the report does not match %s", want)
		}
	}
	if status != 0 || errs != "" {
		t.Errorf("exit status %d: %s\n%s", status, errs, out)
	}
}
