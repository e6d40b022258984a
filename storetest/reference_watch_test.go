package storetest_test

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// feed is a call of Watch that is under way.
type feed struct {
	changed func(driver.ID)
	whole   func(bool)
	told    map[driver.ID]time.Time
	lost    bool          // an outage has been told
	broken  chan struct{} // closed at an outage, by a bug
}

// tell tells those who watch of a change. Its caller holds d.mu, so that nobody loads the record before it is stored.
func (d *disk) tell(id driver.ID) {
	if d.has("tells the short ID") {
		clear(id[4:])
	}
	for f := range d.feeds {
		last, again := f.told[id]
		switch {
		case f.lost, d.has("tells of nothing"), again && d.has("tells of an ID once"):
		case again && time.Since(last) < time.Millisecond && d.has("tells of no second change at once"):
		default:
			f.told[id] = time.Now()
			f.changed(id)
		}
	}
}

func (c *client) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	if err := ctx.Err(); err != nil && !c.has("watches when cancelled before") {
		return err
	}
	select {
	case <-c.done:
		return driver.ErrClosed
	default:
	}
	if c.has("may not watch") {
		return errors.New("no right to")
	}
	f := &feed{changed: changed, whole: whole, told: make(map[driver.ID]time.Time), broken: make(chan struct{})}
	c.disk.mu.Lock()
	if c.has("watches for one at a time") {
		clear(c.feeds)
	}
	c.feeds[f] = struct{}{}
	if f.lost = c.down; !f.lost && !c.has("never says that it watches") {
		whole(true)
		if c.has("says that it watches twice") {
			whole(true)
		}
	}
	c.disk.mu.Unlock()
	defer func() {
		c.disk.mu.Lock()
		defer c.disk.mu.Unlock()
		if !c.has("tells after its end") {
			delete(c.feeds, f)
		}
	}()
	over := ctx.Done()
	if c.has("watches on when cancelled") {
		over = nil
	}
	select {
	case <-over:
		return ctx.Err()
	case <-f.broken:
		return driver.Unavailable(errors.New("connection refused"))
	case <-c.done:
		switch c.bug {
		case "watches on when closed":
			time.Sleep(8 * time.Second)
		case "says another error at the end of a watch":
			return errors.New("use of closed connection")
		}
		return driver.ErrClosed
	}
}
