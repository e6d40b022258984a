package postgres_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

func FuzzURL(f *testing.F) { kind.FuzzURL(f, postgres.Parse) }
