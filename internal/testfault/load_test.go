package testfault_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
)

// TestAnswersLost is a store some of whose answers to writes get lost: what it was asked to do it has done, has not done,
// or does later. Nothing of that is wrong, and the auditor does not say so.
func TestAnswersLost(t *testing.T) {
	background := context.Background()
	for name, do := range map[string]func(wg *sync.WaitGroup, f func()){
		"done":       func(_ *sync.WaitGroup, f func()) { f() },
		"not done":   func(*sync.WaitGroup, func()) {},
		"done later": func(wg *sync.WaitGroup, f func()) { wg.Go(f) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer()
			defer srv.close()
			var later sync.WaitGroup
			defer later.Wait()
			c := &client{server: srv, ctx: t.Context()}
			armed := make(chan struct{})
			lose := func() bool {
				select {
				case <-armed:
					return sometimes()
				default:
					return false // sessions are being created
				}
			}
			c.onSave = func(c *client, id driver.ID, rec driver.Record, prev uint64) error {
				if lose() {
					do(&later, func() { _ = c.records.Save(background, id, rec, prev) }) // nobody learns how it ends
					return driver.ErrUnavailable
				}
				return c.records.Save(background, id, rec, prev)
			}
			c.onDelete = func(c *client, id driver.ID) error {
				if lose() {
					do(&later, func() { _ = c.records.Delete(background, id) })
					return driver.ErrUnavailable
				}
				return c.records.Delete(background, id)
			}
			l := testfault.NewLoad(t, testfault.LoadOptions{Patience: time.Second, Pause: 100 * time.Microsecond}, c)
			close(armed)
			l.Acked(3000)
			r := l.Audit(c)
			if r.Unsure == 0 || r.Wrong+r.Lost+r.Undone+r.Gone+r.Revived+r.Overtaken > 0 {
				t.Errorf("want writes of unknown outcome and nothing wrong or lost: %v %q", r, r.Wrongs)
			}
		})
	}
}
