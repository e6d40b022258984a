package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// mustRun runs the program, which must succeed, and returns what it printed.
func mustRun(t testing.TB, args ...string) string {
	t.Helper()
	status, out, errs := holdfast(t, nil, args...)
	if status != 0 || errs != "" {
		t.Fatalf("holdfast %s: exit status %d: %s", strings.Join(args, " "), status, errs)
	}
	return out
}

func mustKeys(t testing.TB, args ...string) []keyInfo {
	t.Helper()
	var l keyList
	if err := json.Unmarshal([]byte(mustRun(t, append(args, "-o", "json")...)), &l); err != nil || l.Ring == "" {
		t.Fatalf("%+v, %v", l, err)
	}
	return l.Keys
}

func wantStates(t testing.TB, keys []keyInfo, want ...string) {
	t.Helper()
	var got []string
	for _, k := range keys {
		got = append(got, k.State)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("keys are %q, want %q", got, want)
	}
}

// backdate writes into a key ring that everything in it happened days ago.
func backdate(t testing.TB, path string, days int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	date := regexp.MustCompile(`"20\d\d-[^"]*"`)
	b = date.ReplaceAll(b, fmt.Appendf(nil, "%q", time.Now().AddDate(0, 0, -days).UTC().Format(time.RFC3339)))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeys is the life of a key, as an operator goes through it.
func TestKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys.json")
	if out := mustRun(t, "key", "new", path); !regexp.MustCompile(`^key [0-9a-f]{8} is active, in `).MatchString(out) {
		t.Errorf("key new said %q", out)
	}
	first := mustKeys(t, "key", "ls", path)
	wantStates(t, first, "active")

	// The first rotate adds a key, and the second waits until every server knows it.
	if out := mustRun(t, "key", "rotate", path); !regexp.MustCompile(`^key [0-9a-f]{8} waits: give the file to every server, and run this again after 1h0m0s\n$`).MatchString(out) {
		t.Errorf("key rotate said %q", out)
	}
	keys := mustKeys(t, "key", "ls", "file:"+path)
	wantStates(t, keys, "active", "waiting")
	wantRefusal(t, []string{"key", "rotate", path}, nil, 1, keys[1].ID+` waits, for (1h0m0s|59m\d+s) more`, "\x00")
	wantStates(t, mustKeys(t, "key", "ls", path), "active", "waiting")
	backdate(t, path, 1)
	wantStates(t, mustKeys(t, "key", "rotate", path), "decrypt only", "active")

	// A key that may have sealed sessions that live is kept.
	old, active := keys[0].ID, keys[1].ID
	if out := mustRun(t, "key", "retire", path); !strings.Contains(out, "nothing to retire") {
		t.Errorf("key retire said %q", out)
	}
	wantRefusal(t, []string{"key", "retire", path, old}, nil, 1, old+` was active until \d+s ago, and may have sealed sessions that live: wait until 20`, "\x00")
	wantRefusal(t, []string{"key", "retire", path, active}, nil, 1, active+` is active: make another one active first`, "\x00")
	wantRefusal(t, []string{"key", "retire", "--now", path, "01234567"}, nil, 1, `01234567 is unknown: nothing to retire`, "\x00")
	wantRefusal(t, []string{"key", "retire", "--now", path, old, active}, nil, 1, `is active`, "\x00")
	wantStates(t, mustKeys(t, "key", "ls", path), "decrypt only", "active")
	backdate(t, path, 32)
	wantStates(t, mustKeys(t, "key", "retire", path), "retired", "active")
	wantRefusal(t, []string{"key", "retire", "--now", path, old}, nil, 1, `is retired: nothing to retire`, "\x00")

	// --now is for a key that others know.
	wantStates(t, mustKeys(t, "key", "rotate", "--now", path), "retired", "decrypt only", "active")
	mustRun(t, "key", "rotate", path)
	wantStates(t, mustKeys(t, "key", "rotate", "--now", path), "retired", "decrypt only", "decrypt only", "active")
	status, out, errs := holdfast(t, nil, "key", "retire", "--now", path, active)
	if status != 0 || out != "key "+active+" is retired\n" || !strings.Contains(errs, "not used since, are ended") {
		t.Errorf("key retire --now: %d, %q, %q", status, out, errs)
	}
	wantStates(t, mustKeys(t, "key", "retire", "--older-than", "0s", path), "retired", "retired", "retired", "active")

	// Nothing that was printed is a secret.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	listed := mustRun(t, "key", "ls", path) + mustRun(t, "key", "ls", path, "-o", "json")
	secrets := regexp.MustCompile(`"secret": "(.{10})`).FindAllSubmatch(b, -1)
	for _, s := range secrets {
		if strings.Contains(listed, string(s[1])) {
			t.Errorf("printed a secret:\n%s", listed)
		}
	}
	if len(secrets) != 1 || !strings.Contains(listed, "retired") || !strings.Contains(listed, "ago)") {
		t.Errorf("%d secrets in the file, want 1; listed\n%s", len(secrets), listed)
	}
	if _, out, _ = holdfast(t, []string{"KEYS=" + string(b)}, "key", "ls", "env:KEYS"); strings.Count(out, "\n") != 5 {
		t.Errorf("from the environment:\n%s", out)
	}
}

// TestRotateTwice: of two that are run at once, one adds a key and the other one sees it.
func TestRotateTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys.json")
	mustRun(t, "key", "new", path)
	var all sync.WaitGroup
	statuses := make([]int, 4)
	for i := range statuses {
		all.Go(func() { statuses[i], _, _ = holdfast(t, nil, "key", "rotate", path) })
	}
	all.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{0, 1, 1, 1}) {
		t.Errorf("exit statuses %v, want one 0", statuses)
	}
	wantStates(t, mustKeys(t, "key", "ls", path), "active", "waiting")
}
