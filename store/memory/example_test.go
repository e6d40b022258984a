package memory_test

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

func ExampleNew() {
	store := memory.New()
	defer store.Close()

	ctx := context.Background()
	id := driver.ID{1}
	rec := driver.Record{
		Expires:  time.Now().Add(time.Hour).Truncate(time.Millisecond),
		Revision: driver.NewRevision(0),
		Fields:   driver.Fields{}.With(driver.Change{Name: "visits", Value: []byte("1")}),
	}
	fmt.Println("save:", store.Save(ctx, id, rec, 0))
	fmt.Println("save as new again:", store.Save(ctx, id, rec, 0))

	loaded, err := store.Load(ctx, id)
	visits, _ := loaded.Fields.Get("visits")
	fmt.Printf("load: %s visits, %v\n", visits, err)

	_ = store.Delete(ctx, id)
	_, err = store.Load(ctx, id)
	fmt.Println("load after delete:", err)
	// Output:
	// save: <nil>
	// save as new again: changed by another writer
	// load: 1 visits, <nil>
	// load after delete: not found
}
