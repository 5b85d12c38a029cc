/* Lua 5.4: runs the script that its first argument names. */
#include <stdio.h>

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

FILE *tmpfile(void) { return 0; }

int main(int argc, char **argv) {
    static const luaL_Reg libraries[] = {{"_G", luaopen_base}, {"table", luaopen_table}, {"string", luaopen_string}, {"math", luaopen_math}, {"io", luaopen_io}, {0, 0}};
    lua_State *L = luaL_newstate();
    for (const luaL_Reg *one = libraries; one->name; one++) {
        luaL_requiref(L, one->name, one->func, 1);
        lua_pop(L, 1);
    }
    if (argc < 2 || luaL_loadfile(L, argv[1])) {
        fprintf(stderr, "%s\n", argc < 2 ? "which script?" : lua_tostring(L, -1));
        return 2;
    }
    lua_call(L, 0, 1);
    return (int)lua_tointeger(L, -1);
}
