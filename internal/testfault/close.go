package testfault

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// CloseFrozen closes a store twice while its server, which is frozen until this returns, does not answer: that takes no
// longer than limit, and ends a call that is under way.
func CloseFrozen(t *testing.T, server Server, s driver.Store, limit time.Duration) {
	t.Helper()
	server.Freeze()
	defer server.Thaw()
	waiting := make(chan error, 1)
	go func() { // received below
		_, err := s.Load(context.Background(), newSession().id)
		waiting <- err
	}()
	start := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if d := time.Since(start); d > limit {
		t.Errorf("Close took %v with a server that does not answer", d)
	}
	if err := <-waiting; !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("a call under way: %v, want ErrUnavailable", err)
	}
}
