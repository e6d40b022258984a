package memory

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-sessions/holdfast/driver"
)

// Watch implements driver.Watcher. Whoever makes a change calls changed before its call of the store returns, so nothing
// is ever missed: whole is called once.
func (s *Store) Watch(ctx context.Context, changed func(driver.ID), whole func(bool)) error {
	select {
	case <-s.closed:
		return driver.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	default:
	}
	w := &watcher{changed: changed}
	s.watchers.add(w)
	defer s.watchers.remove(w)
	whole(true)
	select {
	case <-s.closed:
		return driver.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchers are the calls of Watch that are under way. The zero value is ready.
type watchers struct {
	// list is never changed, but replaced: a store that nobody watches looks at a pointer for each change, and no more.
	list atomic.Pointer[[]*watcher]
	mu   sync.Mutex // mu guards the replacing of list
}

type watcher struct {
	// mu is held for reading while changed runs, so that none does when Watch has returned.
	mu      sync.RWMutex
	changed func(driver.ID) // nil: Watch returns
}

// tell is called after a change can be loaded. A watcher that is not in the list yet loads what is stored.
func (ws *watchers) tell(id driver.ID) {
	list := ws.list.Load()
	if list == nil {
		return
	}
	for _, w := range *list {
		w.tell(id)
	}
}

func (w *watcher) tell(id driver.ID) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.changed != nil {
		w.changed(id)
	}
}

func (ws *watchers) add(w *watcher) {
	ws.replace(func(list []*watcher) []*watcher { return append(list, w) })
}

func (ws *watchers) remove(w *watcher) {
	ws.replace(func(list []*watcher) []*watcher {
		return slices.DeleteFunc(list, func(o *watcher) bool { return o == w })
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = nil
}

func (ws *watchers) replace(change func(copied []*watcher) []*watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var list []*watcher
	if old := ws.list.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if list = change(list); len(list) == 0 {
		ws.list.Store(nil)
		return
	}
	ws.list.Store(&list)
}
