package postgres_test

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// A primary is killed while applications are at work, and its replica promoted. They go on by themselves, and no answer
// is wrong. What the replica did not have is lost, a logout too, and counted; with synchronous replication it has
// everything.
func TestFailoverLoad(t *testing.T) {
	for _, tt := range []struct {
		name         string
		synchronous  bool
		parted, lost bool
	}{
		{name: "asynchronous"},
		{name: "asynchronous, behind", parted: true, lost: true},
		{name: "synchronous", synchronous: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // each has servers of its own
			pair := testserver.PostgresPair(t, testserver.PairOptions{Synchronous: tt.synchronous})
			url := strings.Replace(address(pair.Primary), pair.Primary.Addr, pair.Primary.Addr+","+pair.Replica.Addr, 1)
			l := testfault.NewLoad(t, testfault.LoadOptions{Sessions: testserver.Scale(200, 2000), Patience: time.Second, Logouts: 20},
				mustOpen(t, url), mustOpen(t, url))
			n := testserver.Scale(500, 10000)
			l.Acked(n)
			if tt.parted {
				pair.Part()
				l.Acked(n / 2)
			}
			pair.Primary.Stop()
			pair.Promote()
			l.Acked(n)
			l.Recovered(100)
			r := l.Audit(mustOpen(t, url))
			t.Log(r)
			if r.Wrong+r.Late > 0 {
				t.Errorf("want no wrong answers: %q", r.Wrongs)
			}
			lost := r.Lost+r.Gone+r.Revived > 0
			if tt.synchronous && lost {
				t.Error("want nothing lost: the replica has confirmed it")
			}
			if tt.lost && !lost {
				t.Error("the replica did not get everything, and nothing is lost: nothing is shown")
			}
		})
	}
}
