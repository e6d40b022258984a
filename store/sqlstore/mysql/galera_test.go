package mysql_test

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// TestGaleraLoad kills a node of three while applications are at work, starts it again, and kills another. They go on by
// themselves, no answer is wrong, and nothing that was acknowledged is lost.
func TestGaleraLoad(t *testing.T) {
	t.Parallel() // the nodes wait for each other most of the time
	g := testserver.Galera(t)
	url := func(i int) string { return address(slices.Concat(g.Nodes[i:], g.Nodes[:i])...) } // each application names another node first
	l := testfault.NewLoad(t, testfault.LoadOptions{Sessions: testserver.Scale(200, 1000), Patience: 5 * time.Second, Logouts: 20},
		mustOpen(t, url(0)), mustOpen(t, url(1)), mustOpen(t, url(2)))
	n := testserver.Scale(500, 10_000)
	l.Acked(n)
	g.Nodes[0].Stop()
	l.Acked(n)
	l.Recovered(100)
	g.Nodes[0].Restart()
	g.Synced(3)
	l.Acked(n)
	g.Nodes[1].Stop()
	l.Acked(n)
	l.Recovered(100)
	r := testsql.WantRight(t, l, mustOpen(t, url(0)))
	if r.Lost+r.Undone+r.Gone+r.Revived > 0 {
		t.Error("want nothing lost: each node had confirmed it")
	}
}
