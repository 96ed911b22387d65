#pragma once

#include <string>

// Decodes all golden vectors of a folder, and compares them with their JSON, their arrays and their texts. Throws
// std::runtime_error, which says where the first difference is.
void CheckVectors(const std::string& folder);
