package storetest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bugs are what stores get wrong, and the cases that must fail on each.
var bugs = []struct {
	bug   string
	fails string
}{
	{"loads a zero record for none", "load/absent"},
	{"keeps times to the second", "save/round-trip"},
	{"keeps no zero Created", "save/round-trip merge/another-life"},
	{"rounds revisions to floats", "save/revisions merge/revisions"},
	{"keeps 63 bits of a revision", "save/revisions"},
	{"keeps old fields", "save/replaces"},
	{"drops empty values", "save/round-trip merge/changes"},
	{"needs the Tag", "save/tag"},
	{"ignores prev", "save/conflict save/one-winner save/counter manager/update delete/anew-stale-writes expiry/made-anew"},
	{"overwrites with prev 0", "save/conflict expiry/already delete/anew-stale-writes"},
	{"reads and writes in two steps", "save/one-winner save/counter save/different-fields delete/wins-over-save manager/update"},
	{"splices in place", "save/slices"},
	{"keys by the short ID", "id/shared-bytes list/complete"},
	{"cuts user names after 255 bytes", "user/names"},
	{"trims user names", "user/names merge/another-life"},
	{"cuts field names at a NUL", "field/names"},
	{"cuts values after 65,535 bytes", "size/steps"},
	{"keeps 1,000 fields", "size/many-fields"},
	{"has no limit", "size/limit user/names"},

	{"does not delete", "delete/ends delete/stale-writes manager/revoke-user"},
	{"refuses to delete twice", "delete/ends"},
	{"saves what was deleted", "save/conflict delete/stale-writes delete/wins-over-save expiry/stale-writes"},
	{"merges what is absent", "merge/never-creates delete/stale-writes delete/wins-over-merge expiry/stale-writes manager/revoke-user"},
	{"touches what is absent", "touch/conflict delete/stale-writes delete/wins-over-touch expiry/stale-writes"},

	{"serves what expired", "expiry/exact expiry/already expiry/shortened"},
	{"serves for 5 ms too long", "expiry/exact expiry/shortened"},
	{"forgets 5 ms early", "expiry/exact expiry/shortened"},
	{"never expires what had expired already", "expiry/already"},
	{"forgets at the first end", "expiry/extended"},
	{"cleans up by ID alone", "expiry/made-anew"},

	{"loses merges", "merge/from-earlier merge/different-fields merge/among-saves field/names manager/different-fields"},
	{"merges in two steps", "merge/different-fields merge/one-field merge/among-saves"},
	{"does not extend from the base", "merge/from-base expiry/extended"},
	{"does not extend in Merge", "merge/from-earlier expiry/extended"},
	{"lowers Seen in Merge", "merge/from-earlier"},
	{"lowers Expires in Merge", "merge/from-earlier"},
	{"keeps the revision in Merge", "merge/revisions"},
	{"lets the first change count", "merge/changes"},
	{"does not remove in Merge", "merge/changes merge/from-earlier field/names"},
	{"compares revisions as floats in Merge", "merge/revisions"},
	{"adds to revisions in 32 bits", "merge/revisions"},
	{"merges over another life", "merge/another-life delete/anew-stale-writes expiry/made-anew manager/logout"},
	{"compares user names as text", "merge/another-life"},
	{"keeps the caller's slice", "merge/slices"},
	{"sorts the caller's changes", "merge/slices"},

	{"drops fields in Touch", "touch/extends"},
	{"never raises Seen in Touch", "touch/extends"},
	{"touches any revision", "touch/conflict touch/loses-no-field"},

	{"tells of nothing", "watch/changes watch/ends"},
	{"tells of no Merge", "watch/changes"},
	{"tells of no Delete", "watch/changes"},
	{"tells of an ID once", "watch/changes watch/loads"},
	{"tells the short ID", "watch/changes"},
	{"tells before it stores", "watch/loads"},
	{"tells of no second change at once", "watch/among-writes"},
	{"never says that it watches", "watch/changes watch/loads"},
	{"says that it watches twice", "watch/changes"},
	{"watches for one at a time", "watch/ends"},
	{"watches on when cancelled", "watch/ends"},
	{"watches when cancelled before", "watch/ends"},
	{"watches on when closed", "watch/ends"},
	{"tells after its end", "watch/ends"},
	{"says another error at the end of a watch", "watch/ends"},
	{"ends a watch in an outage", "watch/outage"},
	{"watches through an outage", "watch/outage"},
	{"watches no more after an outage", "watch/outage"},
	{"tells of nothing after an outage", "watch/outage"},

	{"drops one of a list", "list/complete list/among-writes"},
	{"repeats one of a list", "list/complete list/among-writes"},
	{"lists half records", "list/complete list/among-writes"},
	{"lists what has moved again", "list/among-writes"},
	{"lists what expired", "list/complete"},
	{"breaks when a list is left", "list/body"},
	{"lists on after an error", "list/cancelled"},

	{"sweeps nothing", "sweep/removes"},
	{"sweeps what lives", "sweep/removes sweep/among-writes sweep/cancelled"},
	{"sweeps by ID alone", "sweep/among-writes"},
	{"counts no portion", "sweep/removes"},
	{"counts downwards", "sweep/removes"},
	{"sweeps on when cancelled", "sweep/cancelled"},
	{"counts what expired as living", "stat/counts"},
	{"counts what it ever stored", "stat/counts"},
	{"counts nothing", "stat/counts"},
	{"has a fact without a name", "stat/counts"},

	{"ignores the context", "cancel/before list/cancelled"},
	{"says not found when cancelled", "cancel/before"},
	{"answers a cancelled call late", "cancel/before cancel/during"},
	{"writes half when cancelled", "cancel/before cancel/during"},

	{"describes itself in two ways", "describe"},
	{"works when closed", "close/closed"},
	{"says not found when closed", "close/closed"},
	{"says another error when closed", "close/closed close/among-calls"},
	{"refuses to close twice", "close/closed"},
	{"leaves a goroutine behind", "close/goroutines"},
	{"forgets on reopening", "reopen/keeps"},
	{"revives on reopening", "reopen/keeps"},
	{"says not found when unavailable", "outage/unavailable"},
	{"says another error when unavailable", "outage/unavailable"},
	{"stays down", "outage/unavailable"},
}

func TestSuitePassesOnAGoodStore(t *testing.T) {
	for _, c := range storetest.Cases() {
		for _, peers := range []bool{false, true} {
			r := runCase(t, c, "", peers)
			if len(r.Failures) > 0 || r.Skipped != "" {
				t.Errorf("%s, two clients: %v: skipped %q, failed:\n%s", c.Name, peers, r.Skipped, strings.Join(r.Failures, "\n"))
			}
		}
	}
}

func TestSuiteFailsOnBrokenStores(t *testing.T) {
	bites := make(map[string]bool)
	for _, tt := range bugs {
		t.Run(tt.bug, func(t *testing.T) {
			for name := range strings.FieldsSeq(tt.fails) {
				r := runCase(t, mustFind(t, name), tt.bug, false)
				if len(r.Failures) == 0 {
					t.Errorf("%s passes (skipped: %q)", name, r.Skipped)
					continue
				}
				bites[name] = true
				t.Logf("%s: %s", name, r.Failures[0])
			}
		})
	}
	for _, c := range storetest.Cases() {
		if !bites[c.Name] {
			t.Errorf("no broken store shows that the case %s bites", c.Name)
		}
	}
}

// TestTwoClientsFindAStaleCache: a bug that one client cannot see.
func TestTwoClientsFindAStaleCache(t *testing.T) {
	const bug = "caches what it loaded"
	for _, name := range []string{"save/replaces", "delete/ends"} {
		c := mustFind(t, name)
		if r := runCase(t, c, bug, false); len(r.Failures) > 0 {
			t.Errorf("%s fails with one client: %s", name, r.Failures[0])
		}
		if r := runCase(t, c, bug, true); len(r.Failures) == 0 {
			t.Errorf("%s passes with two clients", name)
		}
	}
}

func TestCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk("")
		var names []string
		r, err := storetest.Check(t.Context(), d.open, func(r storetest.Result) { names = append(names, r.Case.Name) })
		if err != nil {
			t.Fatal(err)
		}
		for _, failed := range r.Failed() {
			t.Errorf("%s: %s", failed.Case.Name, failed.Failures[0])
		}
		if n := 2 * len(storetest.Cases()); len(names) != n || len(r.Results) != n {
			t.Errorf("%d calls of progress, %d results, want %d: each case with one client and with two", len(names), len(r.Results), n)
		}
		if !slices.Contains(names, "two-clients/delete/ends") {
			t.Error("no case two-clients/delete/ends")
		}
		if want := []string{"merge", "touch", "watch", "list", "sweep", "stat"}; !slices.Equal(r.Capabilities, want) || r.Description.Name != "reference" {
			t.Errorf("capabilities %v of %q, want %v of reference", r.Capabilities, r.Description.Name, want)
		}
		if len(r.Latency) != 4 || r.Latency[0].Call != "load" || r.Latency[0].Calls != 1000 {
			t.Errorf("latency %+v, want that of 1,000 calls of each kind", r.Latency)
		}
		wantEmpty(t, d)
	})
}

func TestCheckReportsAndCleansUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk("loses merges")
		r, err := storetest.Check(t.Context(), d.open, nil)
		if err != nil {
			t.Fatal(err)
		}
		var failed []string
		for _, r := range r.Failed() {
			failed = append(failed, r.Case.Name)
		}
		if !slices.Contains(failed, "merge/different-fields") || slices.Contains(failed, "save/conflict") {
			t.Errorf("failed: %v, want merge/different-fields among them, and not save/conflict", failed)
		}
		wantEmpty(t, d)
	})
}

// A store that says why it cannot watch, as an operator's may, passes Check, which says so. In a test of a store it fails.
func TestCheckCannotWatch(t *testing.T) {
	const bug = "may not watch"
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		skipped := 0
		_, err := storetest.Check(ctx, newDisk(bug).open, func(r storetest.Result) {
			if len(r.Failures) > 0 {
				t.Errorf("%s: %s", r.Case.Name, r.Failures[0])
			}
			if strings.Contains(r.Skipped, "cannot watch: no right to") {
				skipped++
			}
			if strings.HasPrefix(r.Case.Name, "list/") {
				cancel() // enough seen
			}
		})
		if !errors.Is(err, context.Canceled) || skipped != 4 {
			t.Errorf("Check = %v, and %d cases were skipped for want of the right, want four of those that watch", err, skipped)
		}
	})
	if r := runCase(t, mustFind(t, "watch/changes"), bug, false); len(r.Failures) == 0 {
		t.Error("watch/changes passes where Watch is refused")
	}
}

func TestCheckStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk("")
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		r, err := storetest.Check(ctx, d.open, func(storetest.Result) {
			if n++; n == 5 {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) || len(r.Results) != 5 {
			t.Errorf("Check that was cancelled after 5 cases = %d results, %v", len(r.Results), err)
		}
		wantEmpty(t, d)
	})
}

func TestCheckCannotOpen(t *testing.T) {
	refused := driver.Unavailable(errors.New("connection refused"))
	_, err := storetest.Check(t.Context(), func(context.Context) (driver.Store, error) { return nil, refused }, nil)
	if !errors.Is(err, refused) {
		t.Errorf("Check = %v, want %v", err, refused)
	}
}

func TestCaseNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range storetest.Cases() {
		if seen[c.Name] || c.Name == "" || c.Proves == "" || strings.ContainsAny(c.Name, " \t") {
			t.Errorf("case %q, %q: want a name of its own without spaces, and what it proves", c.Name, c.Proves)
		}
		seen[c.Name] = true
	}
}

// runCase runs a case in a bubble, over a disk with a bug.
func runCase(t *testing.T, c storetest.Case, bug string, peers bool) (r storetest.Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(bug)
		src := storetest.Source{Open: d.client, Reopen: d.reopen, Outage: d.outage}
		if peers {
			src.Peer = d.client
		}
		r = storetest.RunCase(t.Context(), c, src)
		time.Sleep(10 * time.Second) // a bubble waits for goroutines, but not for those that sleep
	})
	return r
}

func (d *disk) open(context.Context) (driver.Store, error) { return d.client(), nil }

func mustFind(t *testing.T, name string) storetest.Case {
	t.Helper()
	for _, c := range storetest.Cases() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no case %s", name)
	return storetest.Case{}
}

func wantEmpty(t *testing.T, d *disk) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.records) > 0 {
		t.Errorf("%d records were left behind", len(d.records))
	}
}
