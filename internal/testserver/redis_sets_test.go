package testserver_test

import (
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// A replica is promoted when the primary is killed, which comes back as a replica.
func TestRedisSentinel(t *testing.T) {
	t.Parallel()
	set := testserver.RedisSentinel(t)
	first := set.Primary()
	if first != set.Servers[0] {
		t.Fatalf("the primary is %s, want %s", first.Addr, set.Servers[0].Addr)
	}
	first.Stop()
	for set.Primary() == first {
	}
	first.Restart()
	set.Settle()
	if role := first.MustCommand("ROLE"); !strings.HasPrefix(role, "slave") {
		t.Errorf("the former primary says that it is %q", role)
	}
}

// A replica takes over from a primary that is killed, and a slot moves with its keys.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	set := testserver.RedisCluster(t)
	const slot = 12182 // of the key foo
	from, to := set.Owner(slot), set.Nodes[0]
	from.MustCommand("SET", "foo", "bar")
	set.MoveSlot(slot, from, to)
	set.Settle()
	if got := to.MustCommand("GET", "foo"); got != "bar" {
		t.Errorf("after it was moved, foo = %q", got)
	}
	to.CatchUp(1)
	to.Stop()
	set.Settle()
	if got := set.Owner(slot).MustCommand("GET", "foo"); got != "bar" {
		t.Errorf("after a node died, foo = %q", got)
	}
	to.Restart()
	set.Settle()
}
