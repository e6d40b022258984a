package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// WAIT is asked on the connection that wrote, in the same round trip: on any other it would be answered at once for a
// replica that is there and hangs.
func TestWait(t *testing.T) {
	t.Parallel()
	srv := testserver.Redis(t, testserver.RedisOptions{Config: []string{"repl-diskless-sync-delay 0"}})
	replica := testserver.RedisReplica(t, srv)
	admin := mustAdmin(t, srv)
	s := mustOpen(t, "redis://"+srv.Addr+"?wait=1&wait_timeout=300ms")
	confirmed := mustOpen(t, "redis://"+srv.Addr+"?wait=1&wait_timeout=10s")
	rec := record("ada", "n", "1")
	mustDo(t, admin, "SCRIPT", "FLUSH")
	for i := range 3 {
		mustSave(t, confirmed, idOf(i), rec, 0)
	}
	mustDo(t, admin, "CONFIG", "RESETSTAT")
	mustSave(t, confirmed, idOf(3), rec, 0)
	if got := sent(t, admin); got != "evalsha=1 wait=1" && got != "wait=1 evalsha=1" {
		t.Errorf("a write sent %s, want evalsha=1 wait=1", got)
	}

	// If the answer is lost, it is not sent again.
	p := mustProxy(t, srv.Addr)
	cut := mustOpen(t, "redis://"+p.addr+"?wait=1&wait_timeout=10s")
	mustSave(t, cut, idOf(4), rec, 0)
	mustDo(t, admin, "CONFIG", "RESETSTAT")
	p.cut.Store(true)
	if err := cut.Save(t.Context(), idOf(5), rec, 0); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Save whose answer is lost = %v, want ErrUnavailable", err)
	}
	p.cut.Store(false)
	if got := sent(t, admin); got != "evalsha=1 wait=1" && got != "wait=1 evalsha=1" {
		t.Errorf("a write whose answer was lost sent %s, want evalsha=1 wait=1", got)
	}
	wantStored(t, s, idOf(5), rec)

	replica.Freeze()
	changes := []driver.Change{set("n", "2")}
	next := after(rec, changes...)
	_, mergeErr := s.Merge(t.Context(), idOf(0), rec, next, changes)
	mustDo(t, admin, "SCRIPT", "FLUSH") // so that the save is sent twice
	for name, err := range map[string]error{
		"Merge":  mergeErr,
		"Save":   s.Save(t.Context(), idOf(1), after(rec), rec.Revision),
		"Delete": s.Delete(t.Context(), idOf(2)),
		"again":  s.Delete(t.Context(), idOf(2)),
	} {
		if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "not confirmed by 1 replicas within 300ms (by 0)") {
			t.Errorf("%s with a replica that hangs = %v, want ErrUnavailable that says so", name, err)
		}
	}
	wantStored(t, s, idOf(0), next) // it was written
	// What wrote nothing needs no confirmation.
	if err := s.Save(t.Context(), idOf(0), after(rec), rec.Revision); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("Save that lost a race = %v, want ErrConflict", err)
	}
	// The caller's deadline comes first.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Delete(ctx, idOf(1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete = %v, want the caller's deadline", err)
	}
	replica.Thaw()
	eventually(t, "with the replica back", func() error { return s.Delete(t.Context(), idOf(2)) })

	two := mustOpen(t, "redis://"+srv.Addr+"?wait=2&wait_timeout=50ms")
	if err := two.Save(t.Context(), idOf(9), rec, 0); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "by 2 replicas within 50ms (by 1)") {
		t.Errorf("Save for two replicas of one = %v", err)
	}
}

// In a cluster, the copies of the node that writes count, also when the write is sent on to another.
func TestWaitInCluster(t *testing.T) {
	t.Parallel()
	c := testserver.RedisCluster(t)
	s := mustOpen(t, "redis-cluster://"+c.Addrs()+"?wait=1&wait_timeout=300ms")
	rec := record("ada")
	byNode := make(map[*testserver.Server]int)
	for i := 0; len(byNode) < 3; i++ {
		byNode[c.Owner(redisstore.SlotOf(key(i)))] = i
	}
	save := func(n int) error {
		_ = s.Delete(t.Context(), idOf(n)) // the save says what is wrong
		return s.Save(t.Context(), idOf(n), rec, 0)
	}
	c.Nodes[3].Freeze() // for less than the cluster takes to notice
	if err := save(byNode[c.Nodes[0]]); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "not confirmed") {
		t.Errorf("Save where the replica hangs = %v", err)
	}
	for _, node := range c.Nodes[1:3] {
		eventually(t, "Save on another node", func() error { return save(byNode[node]) })
	}
	c.Nodes[3].Thaw()
	c.Settle()
	// The store still believes that the slot is where it was.
	n := byNode[c.Nodes[1]]
	c.MoveSlot(redisstore.SlotOf(key(n)), c.Nodes[1], c.Nodes[0])
	c.Nodes[3].Freeze()
	if err := s.Save(t.Context(), idOf(n), after(rec), rec.Revision); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "not confirmed") {
		t.Errorf("Save that is sent on to where the replica hangs = %v", err)
	}
	c.Nodes[3].Thaw()
}
