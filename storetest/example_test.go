package storetest_test

import (
	"context"
	"fmt"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/storetest"
)

func ExampleCheck() {
	open := func(context.Context) (driver.Store, error) { return memory.New(), nil }
	report, err := storetest.Check(context.Background(), open, func(r storetest.Result) {
		for _, failure := range r.Failures {
			fmt.Println(r.Case.Name, failure)
		}
	})
	fmt.Println(report.Description.Name, report.Capabilities, len(report.Failed()), "failed", err)
	// Output: memory [merge watch list sweep stat] 0 failed <nil>
}
