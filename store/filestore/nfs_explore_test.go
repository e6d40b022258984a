//go:build unix

package filestore_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// nfsPlace is where a record is in its directory.
func nfsPlace(id driver.ID) string { return filepath.Join("n"+id.Hex()[:2], id.Hex()) }

// networkFault is what a network makes of a call.
type networkFault struct {
	name    string
	respond response
}

// faultsOf returns what may go wrong with a call.
func faultsOf(at string) []networkFault {
	call, _, _ := strings.Cut(at, " ")
	answer := func(errno syscall.Errno) response { return func(func() error) error { return errno } }
	notFound, failed := networkFault{"stale name", answer(syscall.ENOENT)}, networkFault{"EIO instead", answer(syscall.EIO)}
	switch call {
	case "mkdir", "create", "rename", "remove":
		return []networkFault{
			{"lost answer and repetition", func(do func() error) error { _ = do(); return do() }},
			{"lost answer, then EIO", func(do func() error) error { _ = do(); return syscall.EIO }},
			notFound, failed,
		}
	case "lstat", "open":
		return []networkFault{notFound, {"stale handle", answer(syscall.ESTALE)}}
	case "list", "read":
		return []networkFault{{"stale handle", answer(syscall.ESTALE)}}
	}
	return []networkFault{failed} // write, sync
}

// TestExploreNFS is TestExplore for network=nfs: all schedules with one preemption, all with a kill, all with a fault of
// the network, and for two Saves these with one preemption more; make soak has one more for all. With three processes it is
// one less. What is ErrUnavailable may have happened or not; the rest of the results must be linearizable. Without
// a fault, only calls that are stopped for longer than an ended record stays may be ErrUnavailable.
func TestExploreNFS(t *testing.T) {
	const r1, a, b, c, n, m = 1, 2, 3, 4, 5, 6 // revisions
	absent, live, expired := 0, r1, -r1
	type process = []call
	tests := []struct {
		name      string
		start     int
		processes []process
	}{
		{"Save || Save", live, []process{{save(r1, a)}, {save(r1, b)}}},
		{"Save || Load Load", live, []process{{save(r1, a)}, {load, load}}},
		{"Save || Delete", live, []process{{save(r1, a)}, {del, load}}},
		{"Save || Save Save", live, []process{{save(r1, a)}, {save(r1, b), save(b, c)}}},
		{"Save || Save Save back", live, []process{{save(r1, a)}, {save(r1, b), save(b, r1), load}}},
		{"Save || Delete anew Load", live, []process{{save(r1, a), load}, {del, save(0, n), load}}},
		{"Save || Delete anew Save", live, []process{{save(r1, a)}, {del, save(0, n), save(n, m)}}},
		{"Save Save || Delete anew", live, []process{{save(r1, a), save(a, b)}, {del, save(0, n), load}}},
		{"Touch || Save", live, []process{{touch(r1, a), load}, {save(r1, b), load}}},
		{"Touch Save || Load Load", live, []process{{touch(r1, a), save(a, b)}, {load, load}}},
		{"Touch || Delete", live, []process{{touch(r1, a), load}, {del, load}}},
		{"Delete || Delete anew", live, []process{{del}, {del, save(0, n), load}}},
		{"Save || sweep", live, []process{{save(r1, a), load}, {sweep, load, sweep}}},
		{"Save || Save || Load", live, []process{{save(r1, a)}, {save(r1, b)}, {load, load}}},
		{"Save || Save || Delete", live, []process{{save(r1, a)}, {save(r1, b)}, {del, load}}},
		{"Save || Delete || anew", live, []process{{save(r1, a)}, {del}, {save(0, n), load}}},
		{"create || create", absent, []process{{save(0, n)}, {save(0, m), load}}},
		{"create || Delete", absent, []process{{save(0, n), load}, {del, load}}},
		{"create || create || Delete", absent, []process{{save(0, n)}, {save(0, m)}, {del, load}}},
		{"expired: create || create", expired, []process{{save(0, n), load}, {save(0, m), load}}},
		{"expired: create || Load", expired, []process{{save(0, n), load}, {load, load}}},
		{"expired: create || sweep", expired, []process{{save(0, n), load}, {sweep, load}}},
		{"expired: create || stale Save", expired, []process{{save(0, n), load}, {save(r1, a), load}}},
		{"expired: create || Delete", expired, []process{{save(0, n), load}, {del, load}}},
		{"ending: Save || Load", live, []process{{save(r1, a), load}, {expire, load, load}}},
		{"ending: Touch || Load", live, []process{{touch(r1, a), load}, {expire, load, load}}},
		{"ending: Save || sweep", live, []process{{save(r1, a), load}, {expire, sweep, load}}},
		{"ending: Save || create", live, []process{{save(r1, a), load}, {expire, save(0, n), load}}},
		{"removed: create || sweep", live, []process{{save(0, n), load}, {del, expire, sweep, load}}},
		{"removed: Save || sweep", live, []process{{save(r1, a), load}, {del, expire, sweep, load}}},
		{"removed: sweep || sweep create", live, []process{{del, expire, sweep, load}, {sweep, save(0, n), load}}},
		{"removed: sweep || create || Load", live, []process{{del, expire, sweep}, {save(0, n)}, {load, load}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newExplorer(t, filestore.Config{Network: filestore.NFS}, tt.start, tt.processes)
				n := *preemptions - 1
				if tt.name == "Save || Save" || testserver.Scale(0, 1) == 1 {
					n++
				}
				if len(tt.processes) > 2 {
					n = max(1, n-1)
				}
				plain, kills := e.explore(bounds{preemptions: n}), e.explore(bounds{preemptions: n - 1, kills: 1})
				if e.unknown > 0 && !strings.HasPrefix(tt.name, "removed: ") {
					t.Errorf("without a fault %d calls are ErrUnavailable", e.unknown)
				}
				before := e.unknown
				faults := e.explore(bounds{preemptions: n - 1, faults: 1})
				t.Logf("%d schedules, %d with a kill (%d calls ErrUnavailable), %d with a fault (%d)", plain, kills, before, faults, e.unknown-before)
			})
		})
	}
}
