package postgres_test

import (
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testload"
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
			pair := testserver.PostgresPair(t, testserver.PairOptions{Synchronous: tt.synchronous})
			url := strings.Replace(address(pair.Primary), pair.Primary.Addr, pair.Primary.Addr+","+pair.Replica.Addr, 1)
			l := testload.Start(t, testload.Config{
				Stores:   []driver.Store{mustOpen(t, url), mustOpen(t, url)},
				Sessions: testserver.Scale(200, 2000),
			})
			n := testserver.Scale(500, 10000)
			l.Progress(n)
			if tt.parted {
				pair.Part()
				l.Progress(n / 2)
			}
			pair.Primary.Stop()
			pair.Promote()
			l.Progress(n)
			r := l.Audit(mustOpen(t, url))
			t.Log(r)
			if r.Wrong > 0 || r.Errors[testload.Foreign]+r.Errors[testload.Audited] > 0 {
				t.Error("want no wrong answers and no errors but those of package driver")
			}
			if tt.synchronous && r.Lost() {
				t.Error("want nothing lost: the replica has confirmed it")
			}
			if tt.lost && !r.Lost() {
				t.Error("the replica did not get everything, and nothing is lost: nothing is shown")
			}
		})
	}
}
