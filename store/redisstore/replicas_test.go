package redisstore_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// replicaConfig has a replica copy its primary at once.
var replicaConfig = testserver.RedisOptions{Config: []string{"repl-diskless-sync yes", "repl-diskless-sync-delay 0"}}

// patient are visitors who wait for as long as a write may wait for its copies, until they are told to hurry.
var patient = testfault.LoadOptions{Patience: 20 * time.Second, Workers: 16, Logouts: 20}

const hurried = 500 * time.Millisecond

// One of two replicas is frozen, or killed, while applications are at work. With wait=1 nobody notices; with wait=2 every
// write is refused until it is back, and reads go on.
func TestOneOfTwoReplicas(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		wait   int
		killed bool
	}{{1, false}, {1, true}, {2, false}, {2, true}} {
		t.Run(fmt.Sprintf("wait=%d,killed=%v", tt.wait, tt.killed), func(t *testing.T) {
			t.Parallel()
			primary := testserver.Redis(t, replicaConfig)
			one := testserver.RedisReplica(t, primary, replicaConfig)
			testserver.RedisReplica(t, primary, replicaConfig)
			primary.CatchUp(2)
			url := fmt.Sprintf("redis://%s?wait=%d&wait_timeout=", primary.Addr, tt.wait)
			a, b, s := mustOpen(t, url+"10s"), mustOpen(t, url+"10s"), mustOpen(t, url+"50ms")
			known := record("ada")
			mustSave(t, a, idOf(1), known, 0)
			l := testfault.NewLoad(t, patient, a, b)
			l.Acked(200)
			before := l.Result()
			if tt.killed {
				one.Stop()
			} else {
				one.Freeze()
			}
			if tt.wait == 1 {
				l.Acked(200)
			} else {
				for range 20 {
					err := s.Save(t.Context(), idOf(2), record("ada"), 0)
					if err == nil || !strings.Contains(err.Error(), "not confirmed by 2 replicas within 50ms (by 1)") {
						t.Errorf("Save with one of two replicas = %v, want ErrUnavailable that says so", err)
					}
					_ = s.Delete(t.Context(), idOf(2)) // refused too, and done
					wantStored(t, s, idOf(1), known)
				}
			}
			if tt.killed {
				one.Restart()
			} else {
				one.Thaw()
			}
			l.Recovered(200)
			result := l.Audit(mustOpen(t, "redis://"+primary.Addr))
			t.Logf("%v", result)
			wantNothingLost(t, result)
			if n := refusals(result) - refusals(before); tt.wait == 1 && n > 0 {
				t.Errorf("%d calls were refused while one of two replicas was away, and one is enough", n)
			}
		})
	}
}

// The primary dies after one of two replicas was away for a while, and that one, or the other, takes its place. What was
// acknowledged is there if either has to confirm every write; if one of them has to, it depends on which it is.
func TestWhichReplicaTakesOver(t *testing.T) {
	t.Parallel()
	for _, wait := range []int{0, 1, 2} {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("wait=%d,behind=%v", wait, behind), func(t *testing.T) {
				t.Parallel()
				primary := testserver.Redis(t, replicaConfig)
				away := testserver.RedisReplica(t, primary, replicaConfig)
				other := testserver.RedisReplica(t, primary, replicaConfig)
				primary.CatchUp(2)
				l := testfault.NewLoad(t, patient, mustOpenWaiting(t, primary.Addr, wait))
				l.Acked(200)
				resume := l.Pause()
				primary.CatchUp(2)
				resume()
				l.SetPatience(hurried)
				away.Freeze()
				primary.MustCommand("CLIENT", "KILL", "TYPE", "replica") // what was sent to it would wait for it in the system
				l.Visits(testserver.Scale(200, 3000))
				next := other
				if behind {
					next = away
				}
				if wait == 0 { // otherwise it dies among writes
					l.Stop()
					primary.CatchUp(1)
				}
				primary.Stop()
				away.Thaw()
				next.MustCommand("REPLICAOF", "NO", "ONE")
				result := l.Audit(mustOpen(t, "redis://"+next.Addr))
				t.Logf("%v", result)
				if behind && wait < 2 {
					wantCounted(t, result)
				} else {
					wantNothingLost(t, result)
				}
			})
		}
	}
}

// The network between a primary and its replica is cut, and the applications are on the primary's side, until the
// replica takes its place. What the primary acknowledged meanwhile is lost, logouts too, unless it has to have copies.
func TestPartition(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		wait   int
		config []string
	}{
		{"alone", 0, nil},
		{"min-replicas-to-write", 0, []string{"min-replicas-to-write 1", "min-replicas-max-lag 3"}},
		{"wait=1", 1, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			config := replicaConfig
			config.Config = append(append([]string{}, config.Config...), tt.config...)
			primary := testserver.Redis(t, config)
			p := testfault.NewProxy(t, primary.Addr, 1)
			_, port, err := net.SplitHostPort(p.Addr)
			if err != nil {
				t.Fatal(err)
			}
			// It follows the last that its configuration names.
			replica := testserver.RedisReplica(t, primary, testserver.RedisOptions{
				Config: append([]string{"replicaof 127.0.0.1 " + port}, replicaConfig.Config...),
			})
			primary.CatchUp(1)
			if tt.config != nil { // it counts its replicas once a second
				eventually(t, "the primary takes writes", func() error {
					if info := primary.MustCommand("INFO", "replication"); !strings.Contains(info, "min_slaves_good_slaves:1") {
						return errors.New(info)
					}
					return nil
				})
			}
			l := testfault.NewLoad(t, patient, mustOpenWaiting(t, primary.Addr, tt.wait))
			l.Acked(200)
			resume := l.Pause()
			primary.CatchUp(1)
			resume()
			before := l.Result()
			l.SetPatience(hurried)
			p.Hold()
			l.Visits(testserver.Scale(200, 3000))
			if tt.config != nil { // until it takes the replica for gone
				eventually(t, "the primary refuses writes", func() error {
					if l.Result().Refused["unavailable"] < 50 {
						return errors.New("not yet")
					}
					return nil
				})
			}
			during := l.Result()
			primary.Stop()
			replica.MustCommand("REPLICAOF", "NO", "ONE")
			result := l.Audit(mustOpen(t, "redis://"+replica.Addr))
			t.Logf("%d writes and %d logouts were acknowledged during the partition; %v", during.Acked-before.Acked, during.Ended-before.Ended, result)
			if tt.wait > 0 {
				wantNothingLost(t, result)
			} else {
				wantCounted(t, result)
			}
		})
	}
}

// mustOpenWaiting opens a store that waits for copies of what it writes, for longer than those who wait for it.
func mustOpenWaiting(t *testing.T, addr string, wait int) driver.Store {
	t.Helper()
	if wait == 0 {
		return mustOpen(t, "redis://"+addr)
	}
	return mustOpen(t, fmt.Sprintf("redis://%s?wait=%d&wait_timeout=20s", addr, wait))
}

func refusals(r testfault.Result) (n int) {
	for _, k := range r.Refused {
		n += k
	}
	return n
}

func wantNoWrongAnswers(t *testing.T, r testfault.Result) {
	t.Helper()
	for _, wrong := range r.Wrongs {
		t.Errorf("wrong answer: %s", wrong)
	}
	if r.Late > 0 {
		t.Errorf("%d calls returned long after their deadlines", r.Late)
	}
}

// wantNothingLost is for what was confirmed by the replica that took over, and where none had to.
func wantNothingLost(t *testing.T, r testfault.Result) {
	t.Helper()
	wantNoWrongAnswers(t, r)
	if r.Lost+r.Gone+r.Revived > 0 {
		t.Errorf("%d acknowledged writes and %d sessions are lost, %d logouts revived; want none", r.Lost, r.Gone, r.Revived)
	}
}

// wantCounted is for what has to be lost, if the test shows anything.
func wantCounted(t *testing.T, r testfault.Result) {
	t.Helper()
	wantNoWrongAnswers(t, r)
	if r.Lost+r.Gone == 0 || r.Revived == 0 {
		t.Errorf("%d acknowledged writes and %d sessions are lost, and %d logouts revived; the test is to count some", r.Lost, r.Gone, r.Revived)
	}
}
