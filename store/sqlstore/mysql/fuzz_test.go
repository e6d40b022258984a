package mysql_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

func FuzzURL(f *testing.F) { kind.FuzzURL(f, mysql.Parse) }
